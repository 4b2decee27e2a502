"""JSON documents become dataclasses, or an error that names each key at fault."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards.settings import PrepareSettings
from pipeline.storage import DocumentError, conform, parse_document, read_document
from tests.support.errors import refused


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    step: int
    loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    name: str
    points: tuple[Point, ...]
    by_split: dict[str, float]


curves = st.builds(
    Curve,
    name=st.text(),
    points=st.lists(
        st.builds(
            Point,
            step=st.integers(0, 2**53),
            loss=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        )
    ).map(tuple),
    by_split=st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
)


@given(curve=curves)
def test_document_round_trips(curve: Curve) -> None:
    assert parse_document(json.dumps(asdict(curve)), Curve) == curve
    assert conform(asdict(curve), Curve) == curve


def test_unknown_keys_are_ignored_and_missing_keys_default() -> None:
    assert parse_document('{"step": 3, "later": true}', Point) == Point(step=3)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('{"name": 1, "points": [], "by_split": {}}', ["name"]),
        ('{"points": [], "by_split": {"train": "x", "eval": 1}}', ["name", "by_split.train"]),
        ('{"name": "a", "points": [{"step": 1}, {"step": "2"}]}', ["points.1.step", "by_split"]),
        ('{"name": "a", "points": [{"step": 1.5}], "by_split": {}}', ["points.0.step"]),
        ('{"name": "a", "points": [{"step": true}], "by_split": {}}', ["points.0.step"]),
        ('{"name": "a", "points": {}, "by_split": []}', ["points", "by_split"]),
        ("[]", []),
        ("null", []),
    ],
)
def test_faulty_keys_are_named_with_their_path(text: str, keys: list[str]) -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document(text, Curve)
    named = [part.partition(": ")[0] for part in str(caught.value).split("; ")]
    assert named == keys or not keys


def test_long_lists_of_faults_are_shortened() -> None:
    text = json.dumps({"name": "a", "points": [{}] * 50, "by_split": {}})
    with pytest.raises(DocumentError, match=r"and 47 more$"):
        parse_document(text, Curve)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        100_000 * "[",
        '{"step": 1}}',
        '{"step": 1, "loss": NaN}',
        "\x00",
        '{"step": 1',
        "\ud800",
    ],
)
def test_text_that_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(DocumentError):
        parse_document(text.encode(errors="surrogatepass"), Point)


def test_settings_check_their_ranges() -> None:
    with pytest.raises(DocumentError) as caught:
        parse_document('{"clips_per_shard": 0, "fbank": {"num_mels": 1}}', PrepareSettings)
    assert "num_mels" in str(caught.value)


def test_damaged_file_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text('{"loss": 1.0}')
    with refused(path, "step", remedy="write it again"):
        read_document(str(path), Point, "write it again")
    with pytest.raises(FileNotFoundError):
        read_document(str(tmp_path / "none.json"), Point, "write it again")
