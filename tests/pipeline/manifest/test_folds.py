"""Folds are balanced, and the same in every run."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.class_counts import count_clips
from pipeline.manifest.folds import MAX_SEED, assign_folds
from pipeline.manifest.manifest import SCHEMA, Clip, Manifest, from_clips, with_column, with_groups
from tests.pipeline.manifest.test_manifest import CLIPS, LABELS
from tests.support.errors import assert_notes, refused


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


def speech(speakers: dict[str, int], labels: str = "abc") -> Manifest:
    """So many clips of each label by each speaker."""
    rows = [
        (f"{speaker}-{label}-{number}", speaker, label)
        for speaker, count in speakers.items()
        for label in labels
        for number in range(count)
    ]
    clips = [Clip(id=clip_id, uri=f"/{clip_id}", labels=(label,)) for clip_id, _, label in rows]
    columns = {"speaker": [speaker for _, speaker, _ in rows]}
    return with_groups(from_clips(clips, tuple(labels)), "speaker", columns)


def shuffled(manifest: Manifest, order: Sequence[int]) -> Manifest:
    assert manifest.group is not None
    group = replace(manifest.group, values=manifest.group.values.take(order))
    return replace(manifest, clips=manifest.clips.take(order), group=group)


@given(
    counts=st.lists(st.integers(1, 6), min_size=4, max_size=12),
    num_folds=st.integers(2, 4),
    seed=st.integers(0, MAX_SEED),
    data=st.data(),
)
def test_folds_keep_groups_together_in_any_order_of_the_clips(
    counts: list[int], num_folds: int, seed: int, data: st.DataObject
) -> None:
    manifest = speech({f"s{i}": count for i, count in enumerate(counts)})
    folds = folds_by_id(assign_folds(manifest, num_folds, seed))
    assert set(folds.values()) == set(range(1, num_folds + 1))
    folds_of: dict[str, set[int]] = {}
    for clip_id, fold in folds.items():
        folds_of.setdefault(clip_id.partition("-")[0], set()).add(fold)
    assert {len(held) for held in folds_of.values()} == {1}
    order = data.draw(st.permutations(range(len(folds))))
    assert folds_by_id(assign_folds(shuffled(manifest, order), num_folds, seed)) == folds


def test_classes_are_even_among_folds_of_groups() -> None:
    manifest = speech({f"s{i}": 2 for i in range(20)})
    folded = assign_folds(manifest, 5)
    assert count_clips(folded, "fold").counts.tolist() == [[8] * 5] * 3
    assert_notes(folded.notes, [20, "'speaker'"])


def test_a_class_smaller_than_the_number_of_folds_is_in_some_of_them() -> None:
    manifest = speech({f"s{i}": 2 for i in range(6)})
    labels = [["rare"], *manifest.clips["labels"].to_pylist()[1:]]
    clips = with_column(manifest.clips, "labels", [pa.array(labels)])
    rare = replace(manifest, clips=clips, labels=("a", "b", "c", "rare"))
    counts = count_clips(assign_folds(rare, 5), "fold")
    assert sorted(counts.counts[3].tolist()) == [0, 0, 0, 0, 1]


def test_another_seed_gives_other_folds() -> None:
    grouped = speech({f"s{i}": 2 for i in range(20)})
    for manifest in (grouped, replace(grouped, group=None)):
        folds = [assign_folds(manifest, 5, seed).clips["fold"].to_pylist() for seed in (0, 0, 1)]
        assert folds[0] == folds[1]
        assert folds[0] != folds[2]
    with refused("--seed", "got -1"):
        assign_folds(from_clips(CLIPS, LABELS), 2, -1)


def test_clips_without_a_group_are_noted_and_may_part() -> None:
    manifest = speech({"": 10, "anna": 4, "bob": 4})
    folded = assign_folds(manifest, 3)
    assert_notes(folded.notes, [2, "'speaker'"], ["30 clips", "'speaker'"])
    nameless = {fold for clip_id, fold in folds_by_id(folded).items() if clip_id.startswith("-")}
    assert len(nameless) > 1


@pytest.mark.parametrize(
    ("counts", "values"),
    [({"anna": 9, "bob": 9}, [2, "3 folds"]), ({"anna": 1, "bob": 1}, [2, "3 folds"])],
)
def test_too_few_groups_are_refused(counts: dict[str, int], values: list[object]) -> None:
    with refused("--group speaker", *values, remedy="fewer folds"):
        assign_folds(speech(counts), 3)


def test_classes_that_are_all_smaller_than_the_number_of_folds_are_refused() -> None:
    clips = [Clip(id=str(i), uri="/x", labels=(f"class {i}",)) for i in range(6)]
    manifest = from_clips(clips, sorted({label for clip in clips for label in clip.labels}))
    groups = {"speaker": [clip.id for clip in clips]}
    with refused("--folds", "no class", 5, remedy="fewer folds"):
        assign_folds(with_groups(manifest, "speaker", groups), 5)
