"""Coverage: how many of the clips that a source lists were found, by split and by class.

A listed clip is found, unreadable (its only file is empty) or missing. The counts travel in the
manifest and in the card of a data set; the coverage page draws them. All functions are pure.

Shapes: N listed clips.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedClips:
    """Listed clips of a split, or of all splits: how many were found, and how many were not."""

    listed: storage.Count
    found: storage.Count
    missing: storage.Count
    unreadable: storage.Count
    found_s: storage.Amount
    """Seconds of audio in the clips that were found."""

    @property
    def share(self) -> float | None:
        """Share of the listed clips that was found; None if none is listed."""
        return self.found / self.listed if self.listed else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedClass:
    """The clips of one class."""

    label: str
    official: storage.Count
    """Listed clips."""
    found: storage.Count
    share: storage.Share
    """`found` / `official`; 1 for a class without listed clips, since none is missing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommonClips:
    """The ids that others scored."""

    listed: storage.Count
    found: storage.Count

    @property
    def share(self) -> float | None:
        """Share of the listed ids that was found; None if none is listed."""
        return self.found / self.listed if self.listed else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """How many of the clips that a source lists were found."""

    source: str
    """Where the audio was looked for."""
    splits: dict[str, ListedClips]
    total: ListedClips
    classes: tuple[ListedClass, ...]
    """The smallest share first."""
    common: CommonClips | None = None

    def to_json(self) -> dict[str, Any]:
        """The document that the manifest, the card and `.coverage.json` hold."""
        return {**asdict(self), "classes": [asdict(entry) for entry in self.classes]}


def count_coverage(
    source: str,
    *,
    split: pa.Array,
    duration_s: npt.NDArray[np.float64],
    classes: pa.ListArray,
    labels: Sequence[str],
    found: Mask,
    unreadable: Mask,
) -> Coverage:
    """Count a listing.

    Args:
        source: where the audio was looked for.
        split: `[N]` names of splits.
        duration_s: `[N]` lengths of the clips, in seconds.
        classes: `[N]` lists of indices into `labels`.
        labels: the vocabulary.
        found: `[N]` whether the clip has a file with content.
        unreadable: `[N]` whether its only file is empty.
    """
    names = sorted(pc.unique(split).to_pylist())
    masks = {name: pc.equal(split, name).to_numpy(zero_copy_only=False) for name in names}
    return Coverage(
        source=source,
        splits={
            name: _count(found[mask], unreadable[mask], duration_s[mask])
            for name, mask in masks.items()
        },
        total=_count(found, unreadable, duration_s),
        classes=count_classes(classes, labels, found),
    )


def count_classes(
    classes: pa.ListArray, labels: Sequence[str], found: Mask
) -> tuple[ListedClass, ...]:
    """Clips of each class that are listed and found, the smallest share first."""
    indices = classes.flatten().to_numpy()
    official = np.bincount(indices, minlength=len(labels))
    num_found = np.bincount(
        indices[np.repeat(found, classes.value_lengths().to_numpy())], minlength=len(labels)
    )
    share = np.where(official > 0, num_found / np.maximum(official, 1), 1.0)
    return tuple(
        ListedClass(
            label=labels[i],
            official=int(official[i]),
            found=int(num_found[i]),
            share=float(share[i]),
        )
        for i in np.argsort(share, kind="stable")
    )


def _count(found: Mask, unreadable: Mask, duration_s: npt.NDArray[np.float64]) -> ListedClips:
    return ListedClips(
        listed=len(found),
        found=int(found.sum()),
        missing=int((~found & ~unreadable).sum()),
        unreadable=int(unreadable.sum()),
        found_s=round(float(duration_s[found].sum()), 3),
    )
