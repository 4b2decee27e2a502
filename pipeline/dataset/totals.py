"""What card and summary say of all clips, counted while the index goes by in pieces.

In: pieces of the index. Out: counts and exact sums, which depend neither on their order nor sizes.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.exact_sum import ExactSum

_FADED_DB = 20.0
"""So much level lost between file and clip is worth a note."""


class Moments:
    """Mean and standard deviation over all values of the clips' fbanks."""

    COLUMNS = ("frames", "fbank_sum", "fbank_sumsq")

    def __init__(self) -> None:
        self.num_frames = 0
        self._sum, self._sum_of_squares = ExactSum(), ExactSum()

    @classmethod
    def of(cls, pieces: Iterable[pa.Table]) -> Self:
        """Those of all pieces of an index."""
        moments = cls()
        for piece in pieces:
            moments.add(piece)
        return moments

    def add(self, index: pa.Table) -> None:
        """Add the clips of a piece of the index."""
        self.num_frames += pc.sum(index["frames"], min_count=0).as_py()
        self._sum.add(index["fbank_sum"].to_numpy())
        self._sum_of_squares.add(index["fbank_sumsq"].to_numpy())

    def mean_and_std(self, num_mels: int) -> tuple[float, float]:
        """Over all values; sums are exact, so the order of the clips does not matter."""
        num_values = self.num_frames * num_mels
        mean = self._sum.value() / num_values
        mean_square = self._sum_of_squares.value() / num_values
        return mean, math.sqrt(max(0.0, mean_square - mean * mean))


@dataclass(kw_only=True, slots=True)
class SplitTotals:
    """Of the clips of a split."""

    num_clips: int = 0
    duration_s: ExactSum = field(default_factory=ExactSum)
    moments: Moments = field(default_factory=Moments)
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, index: pa.Table) -> None:
        """Add the clips of a piece of the index."""
        self.num_clips += index.num_rows
        self.duration_s.add(index["duration_s"].to_numpy())
        self.moments.add(index)
        for counted in pc.value_counts(pc.list_flatten(index["labels"])).to_pylist():
            self.labels[counted["values"]] += counted["counts"]


@dataclass(kw_only=True, slots=True)
class IndexTotals:
    """Of all clips."""

    by_split: dict[str, SplitTotals] = field(default_factory=dict)
    moments: Moments = field(default_factory=Moments)
    num_clipped_clips: int = 0
    num_clipped_samples: int = 0
    num_repaired: int = 0
    num_faded: int = 0

    @property
    def num_clips(self) -> int:
        """In all splits."""
        return sum(split.num_clips for split in self.by_split.values())

    def add(self, index: pa.Table) -> None:
        """Add the clips of a piece of the index."""
        for name in pc.unique(index["split"]).to_pylist():
            split = self.by_split.setdefault(name, SplitTotals())
            split.add(index.filter(pc.equal(index["split"], name)))
        self.moments.add(index)
        if "num_clipped" in index.column_names:
            num_clipped = index["num_clipped"].to_numpy()
            self.num_clipped_clips += int((num_clipped > 0).sum())
            self.num_clipped_samples += int(num_clipped.sum())
        if "repaired" in index.column_names:
            self.num_repaired += index.num_rows - index["repaired"].null_count
            # NaN for silent files, which no comparison counts.
            lost_db = pc.subtract(index["file_level_dbfs"], index["level_dbfs"])
            is_faded = pc.greater_equal(lost_db, _FADED_DB)
            self.num_faded += pc.sum(is_faded, min_count=0).as_py()
