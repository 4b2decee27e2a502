"""What a page shows of recordings: which of them, and scores of their highest classes over time.

In: the finished Parquet files, batch by batch. Steps: choose recordings, if there are too many;
count the classes of all; merge neighbouring windows of long recordings. Out: a `Timeline` for each
of the chosen ones. Memory is that of the chosen ones.

K classes of a timeline, N cells.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_CLASSES = 8
"""Rows of a timeline."""
MAX_CELLS = 400
"""Of a longer recording, neighbouring windows are one cell, with the highest score."""

_NO_CLASS = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCount:
    """A class in all recordings."""

    label: str
    num_highest: int
    """Recordings of which it is the highest class."""
    num_tagged: int
    """Recordings that have it among the tags by the maximum over their windows."""
    score: float
    """The highest in any recording."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Overview:
    """What all recordings say together."""

    chosen: frozenset[str]
    """Ids of the recordings to show."""
    classes: list[ClassCount]
    """Those that occur, the one of most recordings first."""


def overview(batches: Iterable[pa.RecordBatch], most: int) -> Overview:
    """Choose recordings, and count classes.

    If there are more, the choice goes round the classes: of each the recording in which it is the
    highest and has the highest score, then the next one of each, and so on.

    Args:
        batches: rows of recordings.
        most: recordings to choose.
    """
    best: dict[str, list[tuple[float, str]]] = defaultdict(list)
    num_highest: dict[str, int] = defaultdict(int)
    num_tagged: dict[str, int] = defaultdict(int)
    scores: dict[str, float] = defaultdict(float)
    for batch in batches:
        columns = (batch[name].to_pylist() for name in ("recording", "max_labels", "max_scores"))
        for recording, labels, own in zip(*columns, strict=True):
            first = labels[0] if labels else _NO_CLASS
            ranked = best[first]
            ranked.append((-own[0] if own else 0.0, recording))
            if len(ranked) > 2 * most:
                ranked[:] = sorted(ranked)[:most]
            num_highest[first] += bool(labels)
            for label, score in zip(labels, own, strict=True):
                num_tagged[label] += 1
                scores[label] = max(scores[label], score)
    classes = [
        ClassCount(
            label=label,
            num_highest=num_highest.get(label, 0),
            num_tagged=num,
            score=scores[label],
        )
        for label, num in num_tagged.items()
    ]
    classes.sort(key=lambda one: (-one.num_highest, -one.num_tagged, -one.score, one.label))
    return Overview(chosen=frozenset(_around(best, most)), classes=classes)


def _around(best: dict[str, list[tuple[float, str]]], most: int) -> list[str]:
    """The first of each class, then the second, and so on; those without a class last."""
    ranked = [sorted(own) for label, own in best.items() if label != _NO_CLASS]
    rounds = [(place, *own[place]) for own in ranked for place in range(min(len(own), most))]
    chosen = [recording for _, _, recording in sorted(rounds)]
    return [*chosen, *(recording for _, recording in sorted(best.get(_NO_CLASS, [])))][:most]


@dataclass(kw_only=True, slots=True, eq=False)
class Timeline:
    """Scores of a recording over time."""

    recording: str
    row: dict[str, Any]
    """Of `recordings.parquet`."""
    labels: list[str]
    """K, the highest first."""
    start_s: float = 0.0
    """Of its first window: not 0 of a stretch of a file."""
    edges_s: list[float] = field(default_factory=list)
    """N + 1 places, from the start on: a cell is what is nearer to its windows than to others."""
    scores: NDArray[np.float32]
    """`[K, N]`, -1 where the class is not among the tags."""

    @property
    def cells(self) -> list[str]:
        """Per class two hexadecimal digits a cell: 0 no tag, 1 to 255 scores from 0 to 1."""
        levels = np.where(self.scores < 0, 0, 1 + np.rint(254 * self.scores.clip(0, 1)))
        return [row.tobytes().hex() for row in levels.astype(np.uint8)]


def read_timelines(
    recordings: Iterable[pa.RecordBatch],
    windows: Iterable[pa.RecordBatch],
    chosen: Collection[str],
) -> list[Timeline]:
    """The timelines of the chosen recordings, in the order of the files.

    Args:
        recordings: rows of recordings.
        windows: rows of windows.
        chosen: ids.
    """
    value_set = pa.array(sorted(chosen), pa.string())
    found: dict[str, _Merged] = {}
    for batch in recordings:
        for row in _rows(batch, value_set):
            found[row["recording"]] = _Merged(row)
    for batch in windows:
        for row in _rows(batch, value_set):
            found[row["recording"]].add(row)
    return [merged.timeline() for merged in found.values()]


def _rows(batch: pa.RecordBatch, chosen: pa.Array) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = batch.filter(
        pc.is_in(batch["recording"], value_set=chosen)
    ).to_pylist()
    return rows


class _Merged:
    """The windows of a recording so far, as cells."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._row = row
        labels = row["max_labels"][:MAX_CLASSES]
        self._places = {label: place for place, label in enumerate(labels)}
        self._per_cell = -(-row["num_windows"] // MAX_CELLS)
        num_cells = -(-row["num_windows"] // self._per_cell)
        self._scores = np.full((len(labels), num_cells), -1.0, np.float32)
        self._centres_s = np.zeros((num_cells, 2))
        self._num = 0
        self._start_s = self._end_s = 0.0

    def add(self, window: dict[str, Any]) -> None:
        cell, within = divmod(self._num, self._per_cell)
        centre_s = (window["start_s"] + window["end_s"]) / 2
        if not self._num:
            self._start_s = window["start_s"]
        if not within:
            self._centres_s[cell, 0] = centre_s
        self._centres_s[cell, 1] = centre_s
        self._num, self._end_s = self._num + 1, window["end_s"]
        for label, score in zip(window["labels"], window["scores"], strict=True):
            place = self._places.get(label)
            if place is not None:
                self._scores[place, cell] = max(self._scores[place, cell], score)

    def timeline(self) -> Timeline:
        between = (self._centres_s[:-1, 1] + self._centres_s[1:, 0]) / 2
        edges_s = [self._start_s, *between.tolist(), self._end_s]
        return Timeline(
            recording=self._row["recording"],
            row=self._row,
            labels=list(self._places),
            start_s=self._start_s,
            edges_s=[round(edge_s, 3) for edge_s in edges_s],
            scores=self._scores,
        )
