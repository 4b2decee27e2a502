"""Folds are balanced, and the same in every run."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.folds import assign_folds
from pipeline.manifest.manifest import SCHEMA, Clip, Manifest, from_clips
from tests.pipeline.manifest.test_manifest import CLIPS, LABELS
from tests.support.errors import refused


@st.composite
def unfolded(draw: st.DrawFn) -> Manifest:
    labels = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60))
    clips = [Clip(id=str(i), uri="/x", labels=(label,)) for i, label in enumerate(labels)]
    return from_clips(clips, tuple("abcde"))


def folds_by_id(manifest: Manifest) -> dict[str, int]:
    return dict(
        zip(manifest.clips["id"].to_pylist(), manifest.clips["fold"].to_pylist(), strict=True)
    )


@given(manifest=unfolded(), num_folds=st.integers(2, 7), data=st.data())
def test_folds_are_balanced_and_independent_of_order(
    manifest: Manifest, num_folds: int, data: st.DataObject
) -> None:
    folded = assign_folds(manifest, num_folds)
    assert folded.clips.schema.equals(SCHEMA)
    folds = folds_by_id(folded)
    assert set(folds.values()) <= set(range(1, num_folds + 1))
    labels = manifest.clips["labels"].to_pylist()
    for members in [folds.values(), *(_of_class(folds, labels, name) for name in "abcde")]:
        counts = Counter(members)
        sizes = [counts[fold] for fold in range(1, num_folds + 1)]
        assert max(sizes) - min(sizes) <= 1
    order = data.draw(st.permutations(range(len(folds))))
    shuffled = replace(manifest, clips=manifest.clips.take(order))
    assert folds_by_id(assign_folds(shuffled, num_folds)) == folds


def _of_class(folds: dict[str, int], labels: list[list[str]], name: str) -> list[int]:
    return [fold for fold, own in zip(folds.values(), labels, strict=True) if own == [name]]


@pytest.mark.parametrize("num_folds", [-1, 1, 101])
def test_number_of_folds_out_of_range_is_refused(num_folds: int) -> None:
    with refused("--folds", 2, 100, f"got {num_folds}"):
        assign_folds(from_clips(CLIPS, LABELS), num_folds)
