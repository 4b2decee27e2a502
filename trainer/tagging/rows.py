"""Scores as rows: of each window, and of each recording the maximum and mean over its windows.

In: a segment, and the model's scores of its windows. Steps: keep the highest, by the settings;
carry on maximum and sum of a recording that reaches over several segments. Out: Arrow tables.

C classes, D width of the embedding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.audio.rejects import Reject
from pipeline.manifest.manifest import Clip
from trainer.tagging.model import Outputs
from trainer.tagging.segments import Segment, Stretch
from trainer.tagging.settings import KeepSettings

Scores = NDArray[np.float32]

_VECTOR = pa.list_(pa.float16())


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What decides the columns, and the seconds in them."""

    labels: tuple[str, ...]
    sample_rate_hz: int
    keep: KeepSettings

    @property
    def windows(self) -> pa.Schema:
        """A row a window."""
        vectors = [("all_scores", self.keep.all_scores), ("embedding", self.keep.embeddings)]
        return pa.schema(
            [
                pa.field("recording", pa.string(), nullable=False),
                pa.field("start_s", pa.float64(), nullable=False),
                pa.field("end_s", pa.float64(), nullable=False),
                pa.field("labels", pa.list_(pa.string()), nullable=False),
                pa.field("scores", pa.list_(pa.float32()), nullable=False),
                *(pa.field(name, _VECTOR) for name, is_kept in vectors if is_kept),
            ]
        )

    @property
    def recordings(self) -> pa.Schema:
        """A row a recording that has a window."""
        return pa.schema(
            [
                pa.field("recording", pa.string(), nullable=False),
                pa.field("uri", pa.string(), nullable=False),
                pa.field("duration_s", pa.float64(), nullable=False),
                pa.field("file_rate_hz", pa.int32(), nullable=False),
                pa.field("num_windows", pa.int64(), nullable=False),
                pa.field("fault", pa.string()),  # why it was not read to its end; null: it was
                pa.field("max_labels", pa.list_(pa.string()), nullable=False),
                pa.field("max_scores", pa.list_(pa.float32()), nullable=False),
                pa.field("mean_labels", pa.list_(pa.string()), nullable=False),
                pa.field("mean_scores", pa.list_(pa.float32()), nullable=False),
                *(
                    pa.field(name, _VECTOR)
                    for name in ("max_all_scores", "mean_all_scores")
                    if self.keep.all_scores
                ),
            ]
        )


@dataclass(kw_only=True, slots=True, eq=False)
class RecordingState:
    """What is known of a recording after some of its windows."""

    number: int
    """In its part."""
    num_windows: int = 0
    highest: Scores
    """`[C]`, over its windows."""
    total: NDArray[np.float64]
    """`[C]`, likewise."""
    file_rate_hz: int | None = None
    num_samples: int | None = None
    """None: its end has not been read."""
    fault: Reject | None = None
    begins_here: bool = True
    """Whether its first window is among these."""

    @property
    def is_whole(self) -> bool:
        """Whether all its windows are among these."""
        return self.begins_here and self.num_samples is not None

    @classmethod
    def of(cls, stretch: Stretch, scores: Scores) -> "RecordingState":
        """The state after one stretch, of these scores `[B, C]`."""
        num_classes = scores.shape[1]
        return cls(
            number=stretch.number,
            num_windows=len(scores),
            highest=scores.max(axis=0) if len(scores) else np.zeros(num_classes, np.float32),
            total=scores.sum(axis=0, dtype=np.float64),
            file_rate_hz=stretch.file_rate_hz,
            num_samples=stretch.num_samples,
            fault=stretch.fault,
            begins_here=not stretch.starts or stretch.starts[0] == 0,
        )

    def followed_by(self, other: "RecordingState") -> "RecordingState":
        """The state after further windows of the same recording."""
        return RecordingState(
            number=self.number,
            num_windows=self.num_windows + other.num_windows,
            highest=np.maximum(self.highest, other.highest),
            total=self.total + other.total,
            file_rate_hz=other.file_rate_hz or self.file_rate_hz,
            num_samples=other.num_samples,
            fault=other.fault,
        )


def top_tags(scores: Scores, labels: Sequence[str], keep: KeepSettings) -> dict[str, Any]:
    """The classes whose scores `[C]` are kept, the highest first, the first class of equals."""
    order = np.argsort(-scores, kind="stable")[: keep.most]
    if keep.threshold is not None:
        order = order[scores[order] >= np.float32(keep.threshold)]
    return {"labels": [labels[index] for index in order], "scores": scores[order]}


def window_table(
    segment: Segment, outputs: Outputs, clips: Sequence[Clip], layout: Layout
) -> pa.Table:
    """The rows of a segment's windows, with times on the clock of the file.

    Args:
        segment: its windows, in the order of the outputs.
        outputs: of the model.
        clips: the part's recordings.
        layout: of the table.
    """
    rows: list[dict[str, Any]] = []
    for stretch in segment.stretches:
        clip = clips[stretch.number]
        for start, waveform in zip(stretch.starts, stretch.waveforms, strict=True):
            number = len(rows)
            scores = outputs.scores[number]
            row = {
                "recording": clip.id,
                "start_s": _time_s(clip, start, layout),
                "end_s": _time_s(clip, start + len(waveform), layout),
                **top_tags(scores, layout.labels, layout.keep),
            }
            if layout.keep.all_scores:
                row["all_scores"] = scores.astype(np.float16)
            if layout.keep.embeddings:
                assert outputs.embeddings is not None
                row["embedding"] = outputs.embeddings[number].astype(np.float16)
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=layout.windows)


def states_of(segment: Segment, scores: Scores) -> list[RecordingState]:
    """The state of each recording after its stretch in a segment."""
    states, first = [], 0
    for stretch in segment.stretches:
        end = first + len(stretch.starts)
        states.append(RecordingState.of(stretch, scores[first:end]))
        first = end
    return states


def recording_table(
    states: Iterable[RecordingState], clips: Sequence[Clip], layout: Layout
) -> pa.Table:
    """The rows of recordings that have a window; their states are complete."""
    rows = []
    for state in states:
        if not state.num_windows:
            continue
        assert state.num_samples is not None
        mean = (state.total / state.num_windows).astype(np.float32)
        highest = top_tags(state.highest, layout.labels, layout.keep)
        average = top_tags(mean, layout.labels, layout.keep)
        row = {
            "recording": clips[state.number].id,
            "uri": clips[state.number].uri,
            "duration_s": state.num_samples / layout.sample_rate_hz,
            "file_rate_hz": state.file_rate_hz,
            "num_windows": state.num_windows,
            "fault": None if state.fault is None else state.fault.reason,
            **{f"max_{key}": value for key, value in highest.items()},
            **{f"mean_{key}": value for key, value in average.items()},
        }
        if layout.keep.all_scores:
            row |= {
                "max_all_scores": state.highest.astype(np.float16),
                "mean_all_scores": mean.astype(np.float16),
            }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=layout.recordings)


def _time_s(clip: Clip, sample: int, layout: Layout) -> float:
    return (clip.start_s or 0.0) + sample / layout.sample_rate_hz
