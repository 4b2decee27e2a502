"""How many clips each class has in each split or fold of a manifest.

L labels of the vocabulary, P splits or folds.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import Manifest
from pipeline.storage.stored_table import batches

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
    vocabulary = pa.array(manifest.labels, pa.string())
    counts: dict[Any, Counts] = {}
    for batch in batches(manifest.clips, ["labels", column]):
        for part in pc.unique(batch[column]).to_pylist():
            labels = pc.list_flatten(batch["labels"].filter(pc.equal(batch[column], part)))
            numbers = pc.index_in(labels, vocabulary).to_numpy()
            counted = np.bincount(numbers, minlength=len(manifest.labels)).astype(np.int64)
            counts[part] = counts[part] + counted if part in counts else counted
    parts = sorted(counts)
    return ClassCounts(
        labels=manifest.labels,
        parts=tuple(map(str, parts)),
        counts=np.stack([counts[part] for part in parts], axis=1),
    )
