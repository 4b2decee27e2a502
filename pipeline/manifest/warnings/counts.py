"""Warnings about the numbers of clips: classes that are too small to learn or cannot be scored.

In: the clips of each class by split, and by fold. Out: one line for each kind, with what to do.
"""

from collections.abc import Iterable

import numpy as np

from pipeline.manifest.class_counts import ClassCounts
from pipeline.manifest.splits import is_for_training
from pipeline.manifest.warnings.labels import some

FEW = 5
"""A class of fewer clips is hardly learnt, nor scored with any certainty."""

_MORE = "add clips of them, or remove or merge these classes"
_OF_OFFICIAL = "the page of the coverage beside the manifest shows what is missing"


def count_warnings(
    splits: ClassCounts, folds: ClassCounts, *, are_classes: bool, is_official: bool
) -> list[str]:
    """Warnings about classes with few clips, and with none in a split or fold.

    Args:
        splits: clips by split.
        folds: clips by fold.
        are_classes: whether the labels are classes, of which each should have several clips.
        is_official: whether the labels are an official list, which may have unused ones.
    """
    remedy = _OF_OFFICIAL if is_official else _MORE
    return [
        *(_few(splits, remedy) if are_classes else []),
        *([] if is_official else _unused(splits)),
        *_missing_in_splits(splits, remedy),
        *_missing_in_folds(folds, remedy),
        *_nothing_to_evaluate_on(splits, folds),
    ]


def _few(splits: ClassCounts, remedy: str) -> Iterable[str]:
    totals = splits.totals
    few = [f"{splits.labels[i]!r} ({totals[i]})" for i in np.flatnonzero(totals) if totals[i] < FEW]
    if few:
        yield (
            f"fewer than {FEW} clips in {len(few):,} of {len(splits.labels):,} classes: "
            f"{some(few)}; {remedy}"
        )


def _unused(splits: ClassCounts) -> Iterable[str]:
    totals = splits.totals
    unused = [repr(splits.labels[i]) for i in np.flatnonzero(totals == 0)]
    if unused:
        yield (
            f"no clip in {len(unused):,} of {len(splits.labels):,} classes: {some(unused)}; "
            "add clips of them, or remove them from the list of labels"
        )


def _missing_in_splits(splits: ClassCounts, remedy: str) -> Iterable[str]:
    if len(splits.parts) < 2:
        return
    in_use = splits.totals > 0
    for index, split in enumerate(splits.parts):
        missing = np.flatnonzero(in_use & (splits.counts[:, index] == 0))
        effect = "learnt from" if is_for_training(split) else "scored on"
        if len(missing):
            yield (
                f"the split {split!r} has no clip of {len(missing):,} of {int(in_use.sum()):,} "
                f"classes, which cannot be {effect} it: "
                f"{some([repr(splits.labels[i]) for i in missing])}; {remedy}"
            )


def _missing_in_folds(folds: ClassCounts, remedy: str) -> Iterable[str]:
    numbers = [index for index, fold in enumerate(folds.parts) if fold != "0"]
    if len(numbers) < 2:
        return
    in_use = folds.totals > 0
    missing = [  # smaller classes have a warning already
        f"{folds.labels[i]!r} (in {int(held.sum())})"
        for i in np.flatnonzero(folds.totals >= FEW)
        if not (held := folds.counts[i, numbers] > 0).all()
    ]
    if missing:
        yield (
            f"some of the {len(numbers)} folds have no clip of {len(missing):,} of "
            f"{int(in_use.sum()):,} classes, which cannot be scored on them: {some(missing)}; "
            f"{remedy}, or make fewer folds"
        )


def _nothing_to_evaluate_on(splits: ClassCounts, folds: ClassCounts) -> Iterable[str]:
    if len(splits.parts) == 1 and is_for_training(splits.parts[0]) and len(folds.parts) < 2:
        yield (
            f"all clips are in the split {splits.parts[0]!r}, which leaves none to evaluate on; "
            "add --folds 5, or a column split to a table"
        )
