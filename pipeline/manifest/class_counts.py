"""How many clips each class has in each split or fold of a manifest.

L labels of the vocabulary, P splits or folds.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import SCHEMA, Manifest

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCounts:
    """Clips of each class, by split or by fold; a clip with several labels counts for each."""

    labels: tuple[str, ...]
    parts: tuple[str, ...]
    """Names of the splits, or numbers of the folds."""
    counts: Counts
    """`[L, P]`."""

    @property
    def totals(self) -> Counts:
        """`[L]` clips of each class."""
        totals: Counts = self.counts.sum(axis=1)
        return totals


def count_clips(manifest: Manifest, column: Literal["split", "fold"]) -> ClassCounts:
    """Count the clips of each class, by a column; its values are sorted."""
    lists = manifest.clips["labels"].combine_chunks()
    parts = sorted(pc.unique(manifest.clips[column]).to_pylist())
    part = pc.index_in(manifest.clips[column], pa.array(parts, SCHEMA.field(column).type))
    label = pc.index_in(pc.list_flatten(lists), pa.array(manifest.labels, pa.string()))
    clip = pc.list_parent_indices(lists)
    cell = label.to_numpy().astype(np.int64) * len(parts) + part.to_numpy()[clip.to_numpy()]
    counts = np.bincount(cell, minlength=len(manifest.labels) * len(parts))
    return ClassCounts(
        labels=manifest.labels,
        parts=tuple(map(str, parts)),
        counts=counts.reshape(len(manifest.labels), len(parts)).astype(np.int64),
    )
