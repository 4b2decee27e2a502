"""Warnings about labels and counts: each names what is odd, and a sound manifest gets none."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipeline.manifest.class_counts import count_clips
from pipeline.manifest.coverage import Coverage, ListedClips
from pipeline.manifest.folds import assign_folds
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.manifest.warnings.find import manifest_warnings
from tests.support.errors import assert_notes


def made(
    labels: Sequence[str], copies: int = 6, splits: Sequence[str] = ("train", "test")
) -> list[Clip]:
    """`copies` clips of each label in each split; `a+b` stands for two labels."""
    return [
        Clip(id=f"{label}-{split}-{copy}", uri="/x", labels=tuple(label.split("+")), split=split)
        for label in labels
        for split in splits
        for copy in range(copies)
    ]


def manifest_of(clips: Sequence[Clip], *unused: str) -> Manifest:
    return from_clips(clips, sorted({label for clip in clips for label in clip.labels} | {*unused}))


@pytest.mark.parametrize(
    "labels",
    [
        ["dog", "cat"],
        ["train", "tram"],
        ["R&B", "AC/DC"],
        ["dog", "bark, howl", "dog+bark, howl"],
        ["None of these", "Nana"],
    ],
)
def test_sound_manifests_get_no_warning(labels: list[str]) -> None:
    assert manifest_warnings(manifest_of(made(labels))) == []


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["dog"], ["all 12 clips", "'dog'", "--column labels=NAME"]),
        (["Dog", "dog", "cat"], ["labels", "'Dog' (12 clips) and 'dog' (12 clips)"]),
        (["dog", "dog ", "cat"], ["labels", "'dog' (12 clips) and 'dog ' (12 clips)"]),
        (["sea_waves", "sea waves", "x"], ["'sea waves' (12 clips) and 'sea_waves' (12 clips)"]),
        (["Caf\u00e9", "Cafe\u0301", "x"], ["spell them alike"]),
        (["dog|rain", "cat"], [1, "'|'", "'dog|rain'", "--separator '|'"]),
        (["dog, rain", "cat, rain"], [2, "','", "'cat, rain', 'dog, rain'", "--separator ','"]),
        (["dog/rain", "dog", "rain"], [1, "'/'", "'dog/rain'"]),
        (["dog", "rain", "dog+rain", "dog,rain"], [1, "'dog,rain'"]),
        (["Train", "test_set", "dog"], ["Train, test_set", "split or fold"]),
        (["fold1", "Fold 2", "x"], ["fold1", "Fold 2"]),
        (["nan", "dog", "cat"], ["'nan' (12 clips)", "empty"]),
    ],
)
def test_odd_labels_are_named(labels: list[str], values: list[object]) -> None:
    assert_notes(manifest_warnings(manifest_of(made(labels))), values)


def test_unlabelled_clips_are_what_a_single_class_is_told_from() -> None:
    silence = [Clip(id=f"none-{split}", uri="/x", labels=(), split=split) for split in ("a", "b")]
    manifest = manifest_of([*made(["dog"], splits=("a", "b")), *silence])
    assert manifest_warnings(manifest) == []


def test_ids_taken_for_labels_are_named() -> None:
    clips = [Clip(id=str(i), uri="/x", labels=(f"clip-{i}",), fold=1 + i % 2) for i in range(12)]
    warnings = manifest_warnings(manifest_of(clips))
    assert_notes(
        warnings[:1], ["12 labels", "12 clips", "clip-0", "7 more", "--column labels=NAME"]
    )


def test_a_few_clips_may_have_a_label_each() -> None:
    clips = [Clip(id=str(i), uri="/x", labels=(f"class {i}",), fold=1 + i % 2) for i in range(9)]
    assert_notes(manifest_warnings(manifest_of(clips)), ["fewer than 5", "9 of 9"])


def test_splits_that_differ_in_case_are_named() -> None:
    warnings = manifest_warnings(manifest_of(made(["a", "b"], splits=("Train", "train"))))
    assert_notes(warnings, ["splits", "'Train' (12 clips) and 'train' (12 clips)"])


def test_small_and_unused_classes_are_counted() -> None:
    clips = [*made(["dog", "cat"]), *made(["bird"], copies=2)]
    warnings = manifest_warnings(manifest_of(clips, "wolf"))
    assert_notes(warnings, ["1 of 4", "'bird' (4)", "merge"], ["1 of 4", "no clip", "'wolf'"])


def test_classes_that_a_split_lacks_are_named() -> None:
    clips = [*made(["a", "b"]), *made(["new"], splits=("test",)), *made(["old"], splits=("train",))]
    assert_notes(
        manifest_warnings(manifest_of(clips)),
        ["1 of 4", "'test'", "scored", "'old'"],
        ["1 of 4", "'train'", "learnt", "'new'"],
    )


def test_classes_that_folds_lack_are_named() -> None:
    clips = [*made(["dog", "cat"], splits=("train",)), *made(["bird"], 5, splits=("train",))]
    assert_notes(
        manifest_warnings(assign_folds(manifest_of(clips), 6)),
        ["1 of 3", "6 folds", "'bird' (in 5)", "fewer folds"],
    )


def test_a_small_class_has_one_warning() -> None:
    clips = [*made(["dog", "cat"], splits=("train",)), *made(["bird"], 2, splits=("train",))]
    warnings = manifest_warnings(assign_folds(manifest_of(clips), 5))
    assert_notes(warnings, ["fewer than 5", "'bird' (2)"])


def test_clips_for_training_alone_are_named() -> None:
    manifest = manifest_of(made(["dog", "cat"], splits=("train",)))
    assert_notes(manifest_warnings(manifest), ["'train'", "--folds 5"])
    assert manifest_warnings(assign_folds(manifest, 2)) == []
    assert manifest_warnings(manifest_of(made(["dog", "cat"], splits=("eval",)))) == []


def test_labels_of_an_official_list_are_not_doubted() -> None:
    none = ListedClips(listed=0, found=0, missing=0, unreadable=0, found_s=0.0)
    coverage = Coverage(source="/x", splits={}, total=none, classes=())
    manifest = manifest_of(made(["Male speech, man speaking", "dog"]), "Zither")
    assert len(manifest_warnings(manifest)) == 2
    assert manifest_warnings(replace(manifest, coverage=coverage)) == []
    small = manifest_of(made(["dog", "cat"], 1))
    assert_notes(manifest_warnings(small), ["2 of 2", "merge"])
    assert_notes(manifest_warnings(replace(small, coverage=coverage)), ["2 of 2", "coverage"])


def test_clips_are_counted_by_class_and_part() -> None:
    clips = [
        *made(["a"], 2),
        *made(["a+b"], 3, splits=("test",)),
        Clip(id="c", uri="/x", labels=()),
    ]
    counts = count_clips(manifest_of(clips, "z"), "split")
    assert (counts.labels, counts.parts) == (("a", "b", "z"), ("test", "train"))
    assert counts.counts.tolist() == [[5, 2], [3, 0], [0, 0]]
    assert counts.totals.tolist() == [7, 3, 0]
