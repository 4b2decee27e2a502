"""The tags of all recordings, from the files of the segments.

In: the segments of every part, in order. Steps: join their rows; finish recordings that reach over
several segments. Out: `windows.parquet`, `recordings.parquet` and `rejects.parquet`, and last
`tags.json`, which marks the tags as complete. The same segments give the same bytes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.audio.rejects import Ledger, Reject, count_reasons
from pipeline.errors import UserError
from pipeline.manifest.manifest import Clip
from pipeline.version import VERSION
from trainer.tagging.part_files import ScoredSegment, done_segments, read_segment, segments_folder
from trainer.tagging.rows import Layout, RecordingState, recording_table
from trainer.tagging.source import Part, Recordings, deal_parts

WINDOWS, RECORDINGS, REJECTS, CARD = (
    "windows.parquet",
    "recordings.parquet",
    "rejects.parquet",
    "tags.json",
)

_ROWS_PER_GROUP = 16_384
_BATCH_ROWS = 1024
"""Rows that are read at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TagPlan:
    """What decides the tags: the document `_work/plan.json`."""

    format_version: Literal[1] = 1
    source: str
    source_fingerprint: str
    model: str
    """Where it was read from."""
    model_fingerprint: str
    """Hash of its weights."""
    num_classes: storage.Count
    sample_rate_hz: storage.Count
    window_s: storage.Amount
    hop_s: storage.Amount
    channel: str
    top: storage.Count | None
    threshold: float | None
    all_scores: bool
    embeddings: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TagCard:
    """The document `tags.json`."""

    format_version: Literal[1] = 1
    version: str = VERSION
    """Of the program."""
    plan: TagPlan
    labels: list[str]
    num_recordings: storage.Count
    """Those that have a window."""
    num_windows: storage.Count
    duration_s: storage.Amount
    rejects: dict[str, storage.Count]
    """Recordings that could not be read, or not to their end, by "stage: reason"."""
    low_rates: dict[str, storage.Count]
    """Recordings of files with a lower sample rate than the model's, by that rate."""


class _Table:
    """A Parquet file that grows row group by row group."""

    def __init__(self, file: storage.NewFile, schema: pa.Schema) -> None:
        self.num_rows = 0
        self._schema = schema
        self._file = file
        self._writer = pq.ParquetWriter(pa.PythonFile(_Sink(file), "w"), schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0

    def add(self, table: pa.Table) -> None:
        self.num_rows += table.num_rows
        self._num_waiting += table.num_rows
        self._waiting.append(table)
        if self._num_waiting >= _ROWS_PER_GROUP:
            self._flush()

    def commit(self) -> None:
        self._flush()
        self._writer.close()
        self._file.commit()

    def _flush(self) -> None:
        if self._num_waiting:
            self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks())
        self._waiting, self._num_waiting = [], 0


class _Sink:
    """What PyArrow needs of a file."""

    closed = False

    def __init__(self, file: storage.NewFile) -> None:
        self._file, self._position = file, 0

    def write(self, data: bytes) -> int:
        self._file.write(bytes(data))
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None: ...


def assemble(output: str, recordings: Recordings, plan: TagPlan, layout: Layout) -> TagCard:
    """Write the tags, and remove the files of the segments.

    Raises:
        UserError: the file of a segment is missing or damaged.
    """
    ledger = Ledger()
    low_rates: dict[str, int] = {}
    duration_s = 0.0
    done = done_segments(output)
    with (
        storage.new_file(storage.join(output, WINDOWS)) as windows_file,
        storage.new_file(storage.join(output, RECORDINGS)) as recordings_file,
    ):
        windows = _Table(windows_file, layout.windows)
        rows = _Table(recordings_file, layout.recordings)
        for part in deal_parts(recordings):
            clips = recordings.clips_of(part)
            segments = _segments(output, part, done, layout, windows)
            for table, faults in finished_recordings(segments, clips, layout):
                ledger.add(faults)
                rows.add(table)
                duration_s += sum(table["duration_s"].to_pylist())
                for rate_hz in table["file_rate_hz"].to_pylist():
                    if rate_hz < layout.sample_rate_hz:
                        low_rates[str(rate_hz)] = low_rates.get(str(rate_hz), 0) + 1
        windows.commit()
        rows.commit()
    rejects = ledger.table()
    storage.write_table(storage.join(output, REJECTS), rejects)
    card = TagCard(
        plan=plan,
        labels=list(layout.labels),
        num_recordings=rows.num_rows,
        num_windows=windows.num_rows,
        duration_s=round(duration_s, 3),
        rejects=count_reasons(rejects),
        low_rates=dict(sorted(low_rates.items(), key=lambda item: int(item[0]))),
    )
    storage.write_json(storage.join(output, CARD), asdict(card))
    for path in storage.list_files(segments_folder(output)):
        storage.remove(path)
    return card


def read_card(output: str) -> TagCard | None:
    """The card of complete tags; None if there is none."""
    try:
        return storage.read_document(
            storage.join(output, CARD), TagCard, "remove the folder, and run `tag` again"
        )
    except FileNotFoundError:
        return None


def read_batches(path: str, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a table of tags, a few at a time.

    Args:
        path: `windows.parquet` or `recordings.parquet`.
        columns: to read; None: all.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with storage.open_binary(path) as file:
            yield from pq.ParquetFile(file).iter_batches(_BATCH_ROWS, columns=columns)
    except FileNotFoundError as error:
        raise UserError(path, "is missing", "remove the folder, and run `tag` again") from error
    except pa.ArrowException as error:
        raise UserError(path, "damaged", "remove the folder, and run `tag` again") from error


def is_done(segments: Mapping[int, bool]) -> bool:
    """Whether all segments of a part are done: those from the first to the last."""
    last = [number for number, is_last in segments.items() if is_last]
    return bool(last) and segments.keys() >= set(range(last[0]))


def _segments(
    output: str,
    part: Part,
    done: Mapping[int, Mapping[int, bool]],
    layout: Layout,
    windows: _Table,
) -> Iterator[ScoredSegment]:
    """The segments of a part, whose windows are added to the table."""
    segments = done.get(part.number, {})
    if not is_done(segments):
        raise UserError(
            segments_folder(output),
            f"part {part.number} is not complete",
            "run the same command again",
        )
    for number, is_last in sorted(segments.items()):
        segment = read_segment(output, part.number, number, layout, is_last=is_last)
        windows.add(segment.windows)
        yield segment


def finished_recordings(
    segments: Iterable[ScoredSegment], clips: Sequence[Clip], layout: Layout
) -> Iterator[tuple[pa.Table, list[Reject]]]:
    """The rows of recordings in order, and what was wrong with them."""
    pending: RecordingState | None = None
    for segment in segments:
        for partial in segment.record.partial:
            state = partial.to_state()
            pending = state if pending is None else pending.followed_by(state)
            if pending.num_samples is not None:
                faults = [pending.fault] if pending.fault is not None else []
                yield recording_table([pending], clips, layout), faults
                pending = None
        yield segment.recordings, segment.record.faults
