"""A table on the disk returns what a table in memory does, however it was cut into batches."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.stored_table import Partitions, StoredTable, batches, taken
from tests.support.errors import refused

SCHEMA = pa.schema([("name", pa.string()), ("labels", pa.list_(pa.string())), ("n", pa.int32())])

rows = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.none() | st.text(max_size=3),
            "labels": st.none() | st.lists(st.sampled_from(["dog", "rain"]), max_size=2),
            "n": st.none() | st.integers(0, 9),
        }
    ),
    max_size=20,
)


def stored(table: pa.Table, cuts: list[int]) -> StoredTable:
    result = StoredTable(table.schema)
    for start, end in zip([0, *cuts], [*cuts, table.num_rows], strict=True):
        result.append(table.slice(start, end - start))
    return result


@given(rows=rows, data=st.data())
def test_rows_and_columns_are_those_of_a_table_in_memory(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    numbers = st.integers(0, table.num_rows)
    cuts = sorted(data.draw(st.lists(numbers, max_size=4)))
    on_disk = stored(table, cuts)
    assert on_disk.num_rows == table.num_rows
    assert on_disk.equals(table)
    assert on_disk == stored(table, [])
    assert on_disk["labels"].to_pylist() == table["labels"].to_pylist()
    assert on_disk.select(["n", "name"]).equals(table.select(["n", "name"]))
    start, end = sorted([data.draw(numbers), data.draw(numbers)])
    assert on_disk.slice(start, end - start).equals(table.slice(start, end - start))
    if table.num_rows:
        taken = data.draw(st.lists(st.integers(0, table.num_rows - 1), max_size=9))
        assert on_disk.take(taken).equals(table.take(pa.array(taken, pa.int64())))
        assert on_disk.filter([n % 2 == 0 for n in range(len(rows))]).equals(
            table.take(pa.array(range(0, len(rows), 2)))
        )


@given(rows=rows, range_rows=st.integers(1, 5), data=st.data())
def test_rows_are_taken_in_any_order(
    rows: list[dict[str, Any]], range_rows: int, data: st.DataObject
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    order = data.draw(st.permutations(range(len(rows))))[: data.draw(st.integers(0, len(rows)))]
    numbers = np.array(order, dtype=np.int64)
    assert taken(stored(table, []), numbers, range_rows).equals(table.take(pa.array(numbers)))


@given(rows=rows, num_rows=st.integers(1, 5))
def test_batches_hold_each_row_once(rows: list[dict[str, Any]], num_rows: int) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    parts = list(batches(table, ["n"], num_rows))
    assert all(part.num_rows <= num_rows for part in parts)
    assert [row for part in parts for row in part["n"].to_pylist()] == table["n"].to_pylist()


@given(rows=rows, data=st.data())
def test_partitions_keep_the_order_of_their_rows(
    rows: list[dict[str, Any]], data: st.DataObject
) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    size = table.num_rows
    numbers = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)), int)
    cut = data.draw(st.integers(0, size))
    partitions = Partitions(SCHEMA)
    partitions.scatter(table.slice(0, cut), numbers[:cut], "a")
    partitions.scatter(table.slice(cut), numbers[cut:], "a")
    assert partitions.num_rows == size
    for number in range(4):
        expected = table.take(pa.array(np.flatnonzero(numbers == number)))
        assert partitions.read(("a", number)).equals(expected.combine_chunks())
        assert partitions.read(("a", number), ["n"])["n"].to_pylist() == expected["n"].to_pylist()
    assert partitions.read("other").num_rows == 0


def test_nothing_is_left_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = StoredTable(SCHEMA)
    table.append(SCHEMA.empty_table())
    assert list(tmp_path.iterdir()) == []
    assert table.to_pylist() == []


def test_a_folder_for_temporary_files_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(tempfile, "tempdir", missing)
    with refused(missing, "temporary", remedy="TMPDIR"):
        StoredTable(SCHEMA)
