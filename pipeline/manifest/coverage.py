"""Coverage: how many of the clips that a source lists were found, by split and by class.

A listed clip is found, unreadable (its only file is empty) or missing. The counts travel in the
manifest and in the card of a data set; the coverage page draws them. All functions are pure.

Shapes: N listed clips.
"""

import math
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


class CoverageCounts:
    """Counts a listing, part by part."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._official = np.zeros(len(labels), np.int64)
        self._found = np.zeros(len(labels), np.int64)
        self._splits: dict[str, _Tally] = {}

    def add(
        self,
        *,
        split: pa.Array,
        duration_s: npt.NDArray[np.float64],
        classes: pa.ListArray,
        found: Mask,
        unreadable: Mask,
    ) -> None:
        """Count some listed clips.

        Args:
            split: `[N]` names of splits.
            duration_s: `[N]` lengths of the clips, in seconds.
            classes: `[N]` lists of indices into the vocabulary.
            found: `[N]` whether the clip has a file with content.
            unreadable: `[N]` whether its only file is empty.
        """
        for name in pc.unique(split).to_pylist():
            mask = pc.equal(split, name).to_numpy(zero_copy_only=False)
            tally = self._splits.setdefault(name, _Tally())
            tally.add(found[mask], unreadable[mask], duration_s[mask])
        indices = classes.flatten().to_numpy()
        is_found = np.repeat(found, classes.value_lengths().to_numpy())
        self._official += np.bincount(indices, minlength=len(self._labels))
        self._found += np.bincount(indices[is_found], minlength=len(self._labels))

    def coverage(self, source: str) -> Coverage:
        """The counts; `source`: where the audio was looked for."""
        total = _Tally()
        for tally in self._splits.values():
            total.add_all(tally)
        return Coverage(
            source=source,
            splits={name: self._splits[name].listed_clips() for name in sorted(self._splits)},
            total=total.listed_clips(),
            classes=self._classes(),
        )

    def _classes(self) -> tuple[ListedClass, ...]:
        """The smallest share first."""
        share = np.where(self._official > 0, self._found / np.maximum(self._official, 1), 1.0)
        return tuple(
            ListedClass(
                label=self._labels[i],
                official=int(self._official[i]),
                found=int(self._found[i]),
                share=float(share[i]),
            )
            for i in np.argsort(share, kind="stable")
        )


class _Tally:
    """Counts of listed clips."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(("listed", "found", "missing", "unreadable"), 0)
        self._found_s: list[float] = []

    def add(self, found: Mask, unreadable: Mask, duration_s: npt.NDArray[np.float64]) -> None:
        self._counts["listed"] += len(found)
        self._counts["found"] += int(found.sum())
        self._counts["missing"] += int((~found & ~unreadable).sum())
        self._counts["unreadable"] += int(unreadable.sum())
        self._found_s.append(float(duration_s[found].sum()))

    def add_all(self, other: "_Tally") -> None:
        for name, count in other._counts.items():
            self._counts[name] += count
        self._found_s += other._found_s

    def listed_clips(self) -> ListedClips:
        return ListedClips(**self._counts, found_s=round(math.fsum(self._found_s), 3))
