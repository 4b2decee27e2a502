"""Tags of neighbouring windows as events: from when to when a class was heard.

In: the windows of `windows.parquet`, in its order, batch by batch. Out: the events of each
recording. At most those of one recording are in memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Neighbouring windows with the same label."""

    label: str
    start_s: float
    end_s: float
    score: float
    """The highest of its windows."""


@dataclass(kw_only=True, slots=True)
class _Open:
    """An event that may go on."""

    start_s: float
    end_s: float
    score: float
    last: int
    """Number of its last window."""


def events_of(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, list[Event]]]:
    """Each recording with its events by their start; none where no window has a tag.

    Args:
        batches: windows, those of a recording one after the other.
    """
    recording: str | None = None
    joined = _Joined()
    for batch in batches:
        columns = (batch[name].to_pylist() for name in _COLUMNS)
        for name, start_s, end_s, labels, scores in zip(*columns, strict=True):
            if name != recording:
                if recording is not None:
                    yield recording, joined.events()
                recording, joined = name, _Joined()
            joined.add(start_s, end_s, labels, scores)
    if recording is not None:
        yield recording, joined.events()


_COLUMNS = ("recording", "start_s", "end_s", "labels", "scores")


class _Joined:
    """The events of one recording so far."""

    def __init__(self) -> None:
        self._open: dict[str, _Open] = {}
        self._ended: list[Event] = []
        self._num_windows = 0

    def add(self, start_s: float, end_s: float, labels: list[str], scores: list[float]) -> None:
        number = self._num_windows
        self._num_windows += 1
        for label, score in zip(labels, scores, strict=True):
            event = self._open.get(label)
            # Windows that do not touch leave a gap that nothing is known of.
            if event is not None and event.last == number - 1 and start_s <= event.end_s:
                event.end_s, event.score, event.last = end_s, max(event.score, score), number
                continue
            if event is not None:
                self._end(label, event)
            self._open[label] = _Open(start_s=start_s, end_s=end_s, score=score, last=number)

    def events(self) -> list[Event]:
        for label, event in self._open.items():
            self._end(label, event)
        self._open = {}
        return sorted(self._ended, key=lambda one: (one.start_s, one.end_s, one.label))

    def _end(self, label: str, event: _Open) -> None:
        self._ended.append(
            Event(label=label, start_s=event.start_s, end_s=event.end_s, score=event.score)
        )
