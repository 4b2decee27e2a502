"""What a scored segment leaves: two Parquet files, from which the tags are assembled.

One has the rows of its windows. The other, written last, marks the segment as done: the rows of the
recordings that end in it, their faults, and what is known of a recording that goes on. Each has
a checksum; a damaged one is an error, never half a result.
"""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.audio.rejects import Reject
from pipeline.errors import UserError
from pipeline.storage.table_hashes import content_hash
from trainer.tagging.rows import Layout, RecordingState

_KEY = b"ast_ray.tags"
_REMEDY = "remove it, and run the same command again"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenRecording:
    """A recording of which this segment has not all windows."""

    number: storage.Count
    num_windows: storage.Count
    highest: list[float]
    total: list[float]
    file_rate_hz: storage.Count | None
    num_samples: storage.Count | None
    fault: Reject | None

    @classmethod
    def of(cls, state: RecordingState) -> "OpenRecording":
        """For the file."""
        return cls(
            number=state.number,
            num_windows=state.num_windows,
            highest=state.highest.tolist(),
            total=state.total.tolist(),
            file_rate_hz=state.file_rate_hz,
            num_samples=state.num_samples,
            fault=state.fault,
        )

    def to_state(self) -> RecordingState:
        """From the file."""
        return RecordingState(
            number=self.number,
            num_windows=self.num_windows,
            highest=np.array(self.highest, np.float32),
            total=np.array(self.total, np.float64),
            file_rate_hz=self.file_rate_hz,
            num_samples=self.num_samples,
            fault=self.fault,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRecord:
    """What is known of a scored segment besides its rows."""

    is_last: bool
    """Whether its part ends with it."""
    faults: list[Reject]
    """Of the recordings that begin and end in it."""
    partial: list[OpenRecording] = field(default_factory=list)
    """Recordings that began in an earlier segment, or go on in the next."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredSegment:
    """The content of both files."""

    windows: pa.Table
    recordings: pa.Table
    """Of those that begin and end in it."""
    record: SegmentRecord


def segments_folder(output: str) -> str:
    """Where the files of segments lie until the tags are assembled."""
    return storage.join(output, "_work", "segments")


def done_segments(output: str) -> dict[int, dict[int, bool]]:
    """Of each part, the segments that are done, and whether each is the last."""
    done: dict[int, dict[int, bool]] = {}
    for path in storage.list_files(segments_folder(output)):
        name = path.rpartition("/")[2]
        if name.endswith((".done.parquet", ".last.parquet")):
            part, segment, kind = name.split(".")[:3]
            done.setdefault(int(part), {})[int(segment)] = kind == "last"
    return done


def write_segment(output: str, part: int, number: int, scored: ScoredSegment) -> None:
    """Write both files of a segment."""
    storage.write_table(_path(output, part, number, "windows"), _signed(scored.windows, ""))
    kind = "last" if scored.record.is_last else "done"
    text = json.dumps(asdict(scored.record))
    storage.write_table(_path(output, part, number, kind), _signed(scored.recordings, text))


def read_segment(
    output: str, part: int, number: int, layout: Layout, *, is_last: bool
) -> ScoredSegment:
    """Read both files of a segment.

    Raises:
        UserError: one is missing or damaged.
    """
    windows, _ = _read(_path(output, part, number, "windows"), layout.windows)
    path = _path(output, part, number, "last" if is_last else "done")
    recordings, text = _read(path, layout.recordings)
    try:
        record = storage.parse_document(text, SegmentRecord)
    except storage.DocumentError as error:
        raise UserError(path, f"damaged: {error}", _REMEDY) from error
    return ScoredSegment(windows=windows, recordings=recordings, record=record)


def _path(output: str, part: int, number: int, kind: str) -> str:
    return storage.join(segments_folder(output), f"{part:07d}.{number:06d}.{kind}.parquet")


def _signed(table: pa.Table, text: str) -> pa.Table:
    document = json.dumps({"record": text, "hash": content_hash(table)})
    return table.replace_schema_metadata({_KEY: document.encode()})


def _read(path: str, schema: pa.Schema) -> tuple[pa.Table, str]:
    try:
        table = storage.read_table(path)
        document = storage.parse_document((table.schema.metadata or {})[_KEY], _Signed)
    except (storage.DocumentError, KeyError) as error:
        raise UserError(path, "damaged", _REMEDY) from error
    except FileNotFoundError as error:
        raise UserError(path, "is missing", "run the same command again") from error
    table = table.replace_schema_metadata(None)
    if table.schema != schema or content_hash(table) != document.hash:
        raise UserError(path, "damaged: its rows do not match their checksum", _REMEDY)
    return table, document.record


@dataclass(frozen=True, kw_only=True, slots=True)
class _Signed:
    record: str
    hash: str
