"""Warnings about the names of labels and splits: what would make a training worthless.

In: the clips of each class. Out: one line for each kind of oddity, with what to do. Nothing here is
refused, as every oddity may be meant.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from pipeline.manifest.class_counts import ClassCounts
from pipeline.manifest.splits import is_part_name
from pipeline.terminal.units import counted

SHOWN = 5
"""Names that a line shows; the rest is counted."""

_NAME_THE_COLUMN = "name the column of the classes with --column labels=NAME"
_SEPARATORS = ",;|"
_RARE_SEPARATORS = "/+&"
"""They are in many names; they separate labels only where each part is a label, too."""
_EMPTY = frozenset({"nan", "none", "null", "n/a", "na", "-", "?"})
"""How programs write an empty cell."""
_MANY = 10
"""In fewer clips, labels may all differ by chance."""
_MOST = 0.8


def label_warnings(counts: ClassCounts, num_clips: int, num_labelled: int) -> list[str]:
    """Warnings about labels.

    Args:
        counts: clips of each class.
        num_clips: clips in the manifest.
        num_labelled: those with a label.
    """
    clips_of = {
        label: int(total)
        for label, total in zip(counts.labels, counts.totals, strict=True)
        if total
    }
    has_lists = sum(clips_of.values()) > num_labelled
    return [
        *_one_label(clips_of, num_clips),
        *(_ids(clips_of, num_labelled) if are_ids(counts, num_labelled) else []),
        *_alike("labels", clips_of),
        *_lists(clips_of, has_lists),
        *_parts(clips_of),
        *_empty(clips_of),
    ]


def split_warnings(counts: ClassCounts) -> list[str]:
    """Warnings about the names of splits, the parts of `counts`."""
    totals = counts.counts.sum(axis=0)
    return _alike("splits", dict(zip(counts.parts, map(int, totals), strict=True)))


def some(names: Sequence[object]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(map(str, names[:SHOWN]))
    return f"{shown} and {len(names) - SHOWN:,} more" if len(names) > SHOWN else shown


def are_ids(counts: ClassCounts, num_labelled: int) -> bool:
    """Whether nearly every clip has a label to itself."""
    num_single = int((counts.totals == 1).sum())
    return num_labelled >= _MANY and num_single >= _MOST * max(
        (counts.totals > 0).sum(), num_labelled
    )


def _one_label(clips_of: dict[str, int], num_clips: int) -> Iterable[str]:
    if list(clips_of.values()) == [num_clips]:
        (label,) = clips_of
        have = "the only clip has" if num_clips == 1 else f"all {num_clips:,} clips have"
        yield (
            f"{have} one label, {label!r}: every model scores mAP "
            "1.0 on one class; name the folder that holds a folder per class, or "
            f"{_NAME_THE_COLUMN}"
        )


def _ids(clips_of: dict[str, int], num_labelled: int) -> Iterable[str]:
    yield (
        f"{counted(len(clips_of), 'label')} on {num_labelled:,} clips look like ids, "
        f"not classes: {some(list(clips_of))}; {_NAME_THE_COLUMN}"
    )


def _alike(kind: str, clips_of: dict[str, int]) -> list[str]:
    """Names that differ only as people's spelling does: in case, blanks, hyphens, accents' form."""
    groups: dict[str, list[str]] = {}
    for name in clips_of:
        normal = unicodedata.normalize("NFKC", name).casefold()
        groups.setdefault(re.sub(r"[\s_-]+", " ", normal).strip(), []).append(name)
    alike = [
        " and ".join(f"{name!r} ({counted(clips_of[name], 'clip')})" for name in group)
        for group in groups.values()
        if len(group) > 1
    ]
    if not alike:
        return []
    return [
        f"{kind} that differ only in case, spaces, hyphens or underscores count as different: "
        f"{some(alike)}; spell them alike"
    ]


def _lists(clips_of: dict[str, int], has_lists: bool) -> Iterable[str]:
    """Labels that hold a separator: all of them if no clip has several labels, else those made
    of other labels."""
    for sign in _SEPARATORS + _RARE_SEPARATORS:
        is_rare = has_lists or sign in _RARE_SEPARATORS
        lists = [
            label
            for label in clips_of
            if sign in label
            and (not is_rare or all(part.strip() in clips_of for part in label.split(sign)))
        ]
        if lists:
            yield (
                f"{counted(len(lists), 'label holds', 'labels hold')} {sign!r} and "
                f"{'counts as one class' if len(lists) == 1 else 'count as one class each'}: "
                f"{some([repr(label) for label in lists])}; if they are lists, list the files in "
                f"a table and add --separator {sign!r}"
            )


def _parts(clips_of: dict[str, int]) -> Iterable[str]:
    """Splits or folds; a single one may be a class, such as a train beside a tram."""
    parts = [label for label in clips_of if is_part_name(label)]
    if len(parts) > 1:
        yield (
            f"labels are named like splits or folds: {some(parts)}; name the folder that holds "
            "only folders of splits, or list the files in a table with columns path, labels and "
            "split or fold"
        )


def _empty(clips_of: dict[str, int]) -> Iterable[str]:
    empty = [label for label in clips_of if label.strip().casefold() in _EMPTY]
    if empty:
        shown = some([f"{label!r} ({counted(clips_of[label], 'clip')})" for label in empty])
        yield f"labels that programs write for an empty cell: {shown}; leave those cells empty"
