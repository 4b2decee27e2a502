"""Whatever a file holds, reading it as a document or a table gives that or one explained error."""

import io
import json
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    share: storage.Share | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A document with a field of each kind."""

    format_version: Literal[1] = 1
    name: str
    count: storage.Count
    mean: storage.Number = 0.0
    seconds: storage.Amount = 0.0
    parts: tuple[Inner, ...] = ()
    scores: dict[str, storage.Number] | None = None


WHOLE: dict[str, Any] = {"name": "a", "count": 3, "parts": [{"share": 0.5}], "scores": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ('{"name": "a", "count": ', "not valid JSON"),
        (100_000 * "[", "not valid JSON"),
        ('{"name": NaN, "count": 3}', "not valid JSON"),
        ('{"name": "\\ud800", "count": 3}', "not valid JSON"),
        (b'{"name": "\xff", "count": 3}', "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ('{"name": "a"}', "count: Field required"),
        ('{"name": "a", "count": "3"}', "count: must be a valid integer"),
        ('{"name": "a", "count": -1}', "count: must be greater"),
        ('{"name": "a", "count": 1e400}', "count: must be"),
        ('{"name": "a", "count": 9223372036854775808}', "count: must be less"),
        ('{"name": "a", "count": 3, "mean": 1e400}', "mean: must be less"),
        (f'{{"name": "a", "count": 3, "mean": 1{400 * "0"}}}', "mean: must be less"),
        ('{"name": "a", "count": 3, "seconds": -0.1}', "seconds: must be greater"),
        ('{"name": "a", "count": 3, "parts": [{"share": 1.1}]}', "parts.0.share: must be less"),
        ('{"name": "a", "count": 3, "parts": [null]}', "parts.0: must be an object"),
        ('{"name": "a", "count": 3, "scores": {"x": null}}', "scores.x: must be a valid number"),
        ('{"name": "a", "count": 3, "format_version": 2}', "format_version: must be 1, got 2"),
    ],
)
def test_document_that_does_not_fit_names_the_place(text: str | bytes, reason: str) -> None:
    with pytest.raises(storage.DocumentError) as caught:
        storage.parse_document(text, Report)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_document_that_fits_is_read_and_unknown_keys_are_ignored() -> None:
    text = json.dumps({**WHOLE, "newer": [1]})
    assert storage.parse_document(text, Report) == Report(
        name="a", count=3, parts=(Inner(share=0.5),), scores={"x": 1.0}
    )
    assert storage.conform(WHOLE, Report) == storage.parse_document(text, Report)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"x", "\ud800"])
def test_values_that_json_has_not_do_not_conform(value: Any) -> None:
    with pytest.raises(storage.DocumentError):
        storage.conform({**WHOLE, "name": value}, Report)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["name", "count", "mean", "seconds", "parts", "scores"]), JSON)
def test_any_value_in_any_place_fits_or_is_explained(key: str, value: Any) -> None:
    try:
        read = storage.parse_document(json.dumps({**WHOLE, key: value}), Report)
    except storage.DocumentError:
        return
    assert read.count >= 0
    assert read.seconds >= 0


SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("level", pa.float32()),
    ]
)
TABLE = pa.table([["a", "b"], [["x"], []], [None, 1.5]], schema=SCHEMA)


def encode(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def with_column(name: str, column: Any) -> pa.Table:
    return TABLE.set_column(TABLE.column_names.index(name), name, column)


def test_table_that_fits_is_read_and_unknown_columns_are_dropped() -> None:
    table = TABLE.append_column("newer", pa.array([1, 2])).select(
        ["newer", "level", "id", "labels"]
    )
    assert storage.parse_table(encode(table), SCHEMA).equals(TABLE)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (TABLE.drop_columns(["level"]), "no column 'level'"),
        (TABLE.append_column("id", TABLE["id"]), "2 columns 'id'"),
        (with_column("id", pa.array([1, 2])), "column 'id' is int64, expected string"),
        (with_column("id", pa.array(["a", None])), "column 'id' has 1 empty cells"),
        (with_column("labels", pa.array(["x", "y"])), "column 'labels' is string, expected list"),
        (with_column("labels", pa.array([["x", None], [None]])), "column 'labels' has 2 empty"),
        (with_column("labels", pa.array([[1], [2]])), "column 'labels' is list"),
        (with_column("level", pa.array([1.0, 2.0])), "column 'level' is double, expected float"),
        (with_column("level", pa.nulls(2)), "column 'level' is null"),
        (with_column("id", pa.array([b"\xff", b"b"]).cast(pa.binary()).view(pa.string())), "UTF"),
    ],
)
def test_table_that_does_not_fit_names_the_column(table: pa.Table, reason: str) -> None:
    with pytest.raises(storage.DocumentError) as caught:
        storage.parse_table(encode(table), SCHEMA)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.data())
def test_damaged_table_is_read_or_explained(data: st.DataObject) -> None:
    content = bytearray(encode(TABLE))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)))
    for damaged in (bytes(content), bytes(content[:end])):
        try:
            table = storage.parse_table(damaged, SCHEMA)
        except storage.DocumentError:
            continue
        assert table.schema.names == SCHEMA.names
