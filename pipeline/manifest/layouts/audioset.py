"""AudioSet: its segment CSVs joined with the audio that is available.

In: segment CSVs (`segments.py`) and a location of audio (`location.py`), whose files are named
after YouTube's ids (`audioset_names.py`). Steps: read the segments, and list the location once,
both into partitions by a hash of the id, on the disk; distinguish whole videos from clips already
cut (`audioset_length.py`); join one partition after another (`audioset_join.py`); bring the clips
back into the order of the CSVs. Out: a manifest of the found segments, with a table of the others
and counts of both. Only about a partition is in memory at a time.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.coverage import CoverageCounts
from pipeline.manifest.layouts.audioset_join import Joined, join, match_names, readable
from pipeline.manifest.layouts.audioset_length import LengthSample
from pipeline.manifest.layouts.audioset_names import chosen_ids, ids_in_names
from pipeline.manifest.layouts.listing import LISTING_SCHEMA
from pipeline.manifest.layouts.location import AudioListing
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.segments import (
    CLASS_LABELS,
    SEGMENTS_SCHEMA,
    iter_segments,
    read_vocabulary,
    segment_keys,
    split_and_segments,
)
from pipeline.manifest.manifest import SCHEMA, Manifest, from_columns, with_groups
from pipeline.storage.stored_table import BATCH_ROWS, Partitions, StoredTable
from pipeline.terminal.units import counted

_VIDEO = "video"
"""Stands for YouTube's id where clips are grouped."""
_NUM_PARTITIONS = 64
_ROW = pa.field("_row", pa.int64())
"""The place of a segment in the CSVs."""
_SEGMENTS = pa.schema([_ROW, *SEGMENTS_SCHEMA])
_LOCATION = ("offset_bytes", "size_bytes", "row_group", "row")
_FILES = pa.schema(
    [
        ("id", pa.string()),
        ("start", pa.float64()),
        *(LISTING_SCHEMA.field(name) for name in ("name", "uri", "file_size_bytes", *_LOCATION)),
    ]
)
_UNCLEAR_FILES = pa.schema([*_FILES, ("other", pa.string())])
_FOUND = pa.schema(
    [
        _ROW,
        SEGMENTS_SCHEMA.field("classes"),
        *(field for field in SCHEMA if field.name in ("id", "uri", "start_s", "end_s", "split")),
        *(SCHEMA.field(name) for name in _LOCATION),
        (_VIDEO, pa.string()),
    ]
)
_MISSING = pa.schema(
    [
        _ROW,
        *(SEGMENTS_SCHEMA.field(name) for name in ("id", "split", "classes")),
        ("reason", pa.string()),
    ]
)


def read(
    source: str,
    options: SourceOptions,
    *,
    num_partitions: int = _NUM_PARTITIONS,
    rows_per_range: int = BATCH_ROWS,
) -> Manifest:
    """List AudioSet's segments that a location holds.

    Args:
        source: the location.
        options: the CSVs, and how to read the names of files.
        num_partitions: how many parts of the ids are joined one after another.
        rows_per_range: how many segments are brought into their order at once.

    Raises:
        UserError: a CSV is missing or broken, the location is empty, or none of its files is named
            after a segment.
    """
    if options.group not in ("", _VIDEO):
        raise UserError(f"--group {options.group}", f"AudioSet's clips have only {_VIDEO!r}")
    if not options.segments:
        raise UserError("--segments", "the layout audioset needs AudioSet's segment CSVs")
    vocabulary = read_vocabulary(options.class_labels or _class_labels(options.segments[0]))
    segments = _Segments(options.segments, list(vocabulary), num_partitions)
    files = _Files(source, segments, num_partitions)
    whole, note = _are_whole(segments, files, options.cut)
    labels = list(vocabulary.values())
    coverage = CoverageCounts(labels)
    clips = _Clips(labels, rows_per_range)
    num_duplicates = num_double = 0
    for number in range(num_partitions):
        joined = join(segments.read(number), files.read(number), whole=whole)
        files.unlisted.add(joined.files["name"].filter(pa.array(joined.unlisted)))
        num_duplicates += joined.num_duplicates
        num_double += joined.num_double
        clips.add(joined)
        coverage.add(
            split=joined.segments["split"],
            duration_s=joined.segments["end_s"].to_numpy() - joined.segments["start_s"].to_numpy(),
            classes=joined.segments["classes"].combine_chunks(),
            found=joined.file >= 0,
            unreadable=joined.unreadable,
        )
    if not clips.num_found:
        raise _nothing_found(source, files)
    notes = [
        *_duplicates(num_duplicates),
        *files.notes,
        *note,
        *_left_out(num_double, files.unlisted),
    ]
    return clips.manifest(options.group, notes, coverage, source)


class _Segments:
    """The segments of the CSVs, in partitions."""

    def __init__(self, given: Sequence[str], mids: Sequence[str], num_partitions: int) -> None:
        self._partitions = Partitions(_SEGMENTS)
        for batch in iter_segments(given, mids):
            start = self._partitions.num_rows
            rows = pa.array(np.arange(start, start + batch.num_rows))
            numbers = _partition_numbers(batch["id"], num_partitions)
            self._partitions.scatter(batch.append_column(_ROW, rows), numbers)

    def read(self, number: int) -> pa.Table:
        return self._partitions.read(number).select(_SEGMENTS.names)

    def ids(self, number: int) -> pa.Array:
        return segment_keys(self._partitions.read(number, ["id", "start_s"]))[1]


class _Files:
    """The audio of a location, in partitions."""

    def __init__(self, source: str, segments: _Segments, num_partitions: int) -> None:
        self.unlisted = _Unlisted()
        self.num_files = 0
        self.first = ""
        """The first of all names."""
        self.num_partitions = num_partitions
        self._partitions = Partitions(_FILES)
        unclear = Partitions(_UNCLEAR_FILES)
        listing = AudioListing(source)
        for table in listing.tables(BATCH_ROWS):
            self.num_files += table.num_rows
            self.first = min(filter(None, (self.first, pc.min(table["name"]).as_py())), default="")
            ids = ids_in_names(table["name"])
            for name in ids.column_names:
                table = table.append_column(name, ids[name])
            self._add(table, unclear)
        self.notes = listing.notes
        for number in range(num_partitions):
            rows = unclear.read(number)
            if rows.num_rows:
                is_listed = pc.is_in(rows["id"], segments.ids(number))
                ids = chosen_ids(rows, is_listed)
                for column, name in enumerate(ids.column_names):
                    rows = rows.set_column(column, name, ids[name])
                self._scatter(rows)

    def _add(self, files: pa.Table, unclear: Partitions) -> None:
        """Add files to partitions by their ids; those that may have another id wait."""
        has_first, has_other = pc.is_valid(files["id"]), pc.is_valid(files["other"])
        has_none = pc.invert(pc.or_(has_first, has_other))
        self.unlisted.add(files["name"].filter(has_none))
        if pc.any(has_other).as_py():
            has_both = pc.and_(has_first, has_other)
            both = files.filter(has_both).select(_UNCLEAR_FILES.names)
            unclear.scatter(both, _partition_numbers(both["id"], self.num_partitions))
            files = files.filter(pc.invert(pc.or_(has_both, has_none)))
            files = files.set_column(
                files.column_names.index("id"), "id", pc.coalesce(files["id"], files["other"])
            )
        elif pc.any(has_none).as_py():
            files = files.filter(has_first)
        self._scatter(files)

    def _scatter(self, files: pa.Table) -> None:
        numbers = _partition_numbers(files["id"], self.num_partitions)
        self._partitions.scatter(files.select(_FILES.names), numbers)

    def read(self, number: int) -> pa.Table:
        return self._partitions.read(number)


class _Unlisted:
    """Files of no listed segment: how many, and the first of their names."""

    NUM_SHOWN = 3

    def __init__(self) -> None:
        self.num = 0
        self.names: list[str] = []

    def add(self, names: pa.ChunkedArray) -> None:
        self.num += len(names)
        if len(names):
            first = names.take(pc.select_k_unstable(names, self.NUM_SHOWN, [("", "ascending")]))
            self.names = sorted([*self.names, *first.to_pylist()])[: self.NUM_SHOWN]


class _Clips:
    """Segments that were found, and others, brought back into the order of the CSVs."""

    def __init__(self, labels: Sequence[str], rows_per_range: int) -> None:
        self._labels = labels
        self._rows_per_range = rows_per_range
        self._found, self._missing = Partitions(_FOUND), Partitions(_MISSING)
        self._num_ranges = 0

    @property
    def num_found(self) -> int:
        return self._found.num_rows

    def add(self, joined: Joined) -> None:
        is_found = joined.file >= 0
        found, missing = pa.array(is_found), pa.array(~is_found)
        files = joined.files.take(pa.array(joined.file[is_found]))
        rows = joined.segments.filter(found)
        stretches = pa.array(joined.stretches[is_found])
        self._scatter(
            self._found,
            {
                **{name: files[name] for name in ("uri", *_LOCATION)},
                **{name: rows[name] for name in (_ROW.name, "classes", "split")},
                **{name: pc.if_else(stretches, rows[name], None) for name in ("start_s", "end_s")},
                "id": joined.clip_ids.filter(found),
                _VIDEO: rows["id"],
            },
        )
        rows = joined.segments.filter(missing)
        reason = pc.if_else(pa.array(joined.unreadable[~is_found]), "file of 0 bytes", "no file")
        names = (_ROW.name, "id", "split", "classes")
        self._scatter(self._missing, {**{name: rows[name] for name in names}, "reason": reason})

    def _scatter(self, partitions: Partitions, columns: dict[str, pa.ChunkedArray]) -> None:
        rows = columns[_ROW.name].to_numpy()
        if len(rows):
            ranges = rows // self._rows_per_range
            self._num_ranges = max(self._num_ranges, int(ranges.max()) + 1)
            partitions.scatter(pa.table(columns), ranges)

    def manifest(
        self, group: str, notes: Sequence[str], coverage: CoverageCounts, source: str
    ) -> Manifest:
        clips = StoredTable(SCHEMA)
        videos: list[pa.Array] = []
        for rows in self._in_order(self._found):
            columns = {name: rows[name] for name in SCHEMA.names if name in rows.column_names}
            columns["labels"] = self._label_lists(rows)
            clips.append(from_columns(columns, self._labels).clips)
            videos.append(rows[_VIDEO].combine_chunks())
        missing = StoredTable(
            pa.schema(
                [SCHEMA.field(name).with_nullable(True) for name in ("id", "split", "labels")]
            ).append(_MISSING.field("reason"))
        )
        for rows in self._in_order(self._missing):
            missing.append(rows.append_column("labels", self._label_lists(rows)))
        manifest = Manifest(
            clips=clips,
            labels=tuple(self._labels),
            notes=tuple(notes),
            missing=missing,
            coverage=coverage.coverage(source),
        )
        return with_groups(manifest, group, {_VIDEO: pa.chunked_array(videos, pa.string())})

    def _in_order(self, partitions: Partitions) -> Iterator[pa.Table]:
        for number in range(self._num_ranges):
            rows = partitions.read(number)
            if rows.num_rows:
                yield rows.take(pa.array(np.argsort(rows[_ROW.name].to_numpy(), kind="stable")))

    def _label_lists(self, rows: pa.Table) -> pa.ListArray:
        classes = rows["classes"].combine_chunks()
        names = pa.array(self._labels, pa.string()).take(classes.flatten())
        return pa.ListArray.from_arrays(classes.offsets, names)


def _partition_numbers(ids: pa.ChunkedArray, num_partitions: int) -> npt.NDArray[np.int32]:
    """The partition of each of YouTube's ids, which all have 11 characters."""
    if not len(ids):
        return np.empty(0, np.int32)
    texts = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    fixed = texts.cast(pa.binary(11))
    data = np.frombuffer(fixed.buffers()[1], np.uint8)[11 * fixed.offset :][: 11 * len(fixed)]
    characters = data.reshape(-1, 11)
    head = np.ascontiguousarray(characters[:, :8]).view(np.uint64)[:, 0]
    tail = np.ascontiguousarray(characters[:, 3:]).view(np.uint64)[:, 0]
    mixed = (head ^ (tail << np.uint64(7))) * np.uint64(0x9E3779B97F4A7C15)
    numbers = (mixed >> np.uint64(32)) * np.uint64(num_partitions) >> np.uint64(32)
    return numbers.astype(np.int32)


def _are_whole(segments: _Segments, files: _Files, cut: str) -> tuple[bool, list[str]]:
    """Whether files named by an id alone are whole videos, and a note on how that was decided."""
    if cut != "auto":
        return cut == "no", []
    sample = LengthSample()
    for number in range(files.num_partitions):
        of_partition = files.read(number)
        names = match_names(of_partition, segments.ids(number))
        unclear = names.without_start & readable(of_partition)
        sample.add(of_partition.filter(pa.array(unclear)))
    return sample.are_whole()


def _class_labels(segments: str) -> str:
    """The label CSV beside the segments."""
    path = storage.join(split_and_segments(segments)[1].rpartition("/")[0], CLASS_LABELS)
    if not storage.exists(path):
        raise UserError(path, "no such file", "give the label CSV with --class-labels")
    return path


def _duplicates(num: int) -> list[str]:
    if not num:
        return []
    are = counted(num, "segment is a duplicate", "segments are duplicates")
    return [f"{are} (same id and start); the first counts"]


def _left_out(num_double: int, unlisted: _Unlisted) -> list[str]:
    """Notes on files of the listing that were left out."""
    notes = []
    if num_double:
        notes.append(f"left out {counted(num_double, 'file')} of segments that have another file")
    if unlisted.num:
        notes.append(
            f"left out {counted(unlisted.num, 'file')} of no listed segment, such as "
            f"{', '.join(unlisted.names)}"
        )
    return notes


def _nothing_found(source: str, files: _Files) -> UserError:
    example = f", such as {files.first}" if files.num_files else ""
    return UserError(
        source,
        f"none of {files.num_files} audio files holds a listed segment{example}",
        "expected ID.flac, YID.wav, TITLE [ID].webm, ID_START.wav or ID_START_END.wav, START in "
        "seconds or milliseconds",
    )
