"""Numbers for people."""

import pytest

from pipeline.dataset.source_rates import low_rate_note
from pipeline.manifest.warnings.labels import _lists, _one_label
from pipeline.terminal.units import counted
from tests.support.errors import assert_names


@pytest.mark.parametrize(
    ("value", "nouns", "expected"),
    [
        (0, ["clip"], "0 clips"),
        (1, ["clip"], "1 clip"),
        (1200, ["clip"], "1,200 clips"),
        (1, ["class", "classes"], "1 class"),
        (2, ["clip is", "clips are"], "2 clips are"),
    ],
)
def test_noun_agrees_with_its_number(value: int, nouns: list[str], expected: str) -> None:
    assert counted(value, *nouns) == expected


def test_notes_of_one_clip_or_label_are_in_the_singular() -> None:
    (label,) = _one_label({"dog": 1}, 1)
    assert_names(label, "the only clip has", "'dog'")
    (held,) = _lists({"a;b": 3, "a": 2, "b": 2}, has_lists=True)
    assert_names(held, "1 label holds", "counts as one class")
    assert_names(low_rate_note({"8000": 1}, 1, 16_000), "1 clip is")
    assert_names(low_rate_note({"8000": 1}, 9, 16_000), "1 of 9 clips is")
