"""AudioSet: its segment CSVs joined with the audio that is available.

In: segment CSVs (`segments.py`) and a location of audio (`location.py`), whose files are named
after YouTube's id, which may contain `-` and `_`: `ID`, `YID`, `ID_START` or `ID_START_END`, START
in seconds or milliseconds, or as yt-dlp and youtube-dl do, `TITLE [ID]` or `TITLE-ID`; with any
suffix and in any folder. Steps: read the segments, list the
location once, distinguish whole videos from clips already cut, join. Out: a manifest of the found
segments, in the order of the CSVs, with a table of the others and counts of both.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import soundfile

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.coverage import Mask, count_coverage
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.segments import (
    CLASS_LABELS,
    SPAN_MS,
    YOUTUBE_ID,
    read_segments,
    read_vocabulary,
    segment_keys,
    split_and_segments,
)
from pipeline.manifest.manifest import Manifest, from_columns, with_groups

WHOLE_S = 12.0
"""A longer file is a whole video, not an already cut segment of 10 s."""
SAMPLE_SIZE = 32
"""Files whose headers are read to distinguish whole videos from clips."""

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_NAME = (
    rf"(?:^|/)(?:[^/]*?[-\[ ])??Y?(?P<id>{YOUTUBE_ID})"
    rf"(?:_(?P<start>{_NUMBER})(?:_{_NUMBER})?)?\]?(?:\.[A-Za-z0-9]+)*$"
)
"""A title may precede the id. Otherwise it is unambiguous, as ids have 11 characters: an id is
followed by nothing, suffixes, or `_` and a digit, and the first character after a misaligned id is
none of these."""
_NAME_AT_END = rf"[-\[ ](?P<id>{YOUTUBE_ID})\]?(?:\.[A-Za-z0-9]+)*$"
"""After a title that looks as if it held an id and a start."""
_TOLERANCE_MS = 1000
"""Starts in names are often whole seconds where the CSV has tenths."""

_VIDEO = "video"
"""Stands for YouTube's id where clips are grouped."""

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """Ids and starts from the names of `F` files; `N` segments have `I` different ids."""

    id_number: Indices
    """`[F]` index of the id; -1: no id of the CSVs."""
    start: npt.NDArray[np.float64]
    """`[F]` START as in the name; NaN: none."""

    @property
    def without_start(self) -> Mask:
        """`[F]` files named only by an id of the CSVs."""
        return (self.id_number >= 0) & np.isnan(self.start)


def read(source: str, options: SourceOptions) -> Manifest:
    """List AudioSet's segments that a location holds.

    Raises:
        UserError: a CSV is missing or broken, the location is empty, or none of its files is named
            after a segment.
    """
    if options.group not in ("", _VIDEO):
        raise UserError(f"--group {options.group}", f"AudioSet's clips have only {_VIDEO!r}")
    if not options.segments:
        raise UserError("--segments", "the layout audioset needs AudioSet's segment CSVs")
    vocabulary = read_vocabulary(options.class_labels or _class_labels(options.segments[0]))
    segments, notes = read_segments(options.segments, list(vocabulary))
    # In a fixed order, so that every run picks the same of two files for a segment.
    order = ("name", "uri", "offset_bytes", "row_group", "row")
    listing, left_out = list_audio(source)
    listing = listing.combine_chunks().sort_by([(name, "ascending") for name in order])
    keys, ids = segment_keys(segments)
    names = parse_names(listing["name"], ids)
    whole, note = _are_whole(listing, names.without_start & _readable(listing), options.cut)
    pairs = pair(names, keys, whole=whole)
    file, unreadable = choose(pairs, _readable(listing), segments.num_rows)
    if not (file >= 0).any():
        raise _nothing_found(source, listing)
    stretches = whole & names.without_start[file]
    manifest = _manifest(segments, listing, file, stretches, keys, list(vocabulary.values()))
    videos = segments["id"].filter(pa.array(file >= 0))
    return replace(
        with_groups(manifest, options.group, {_VIDEO: videos}),
        notes=(*notes, *left_out, *note, *_notes(listing, pairs, file)),
        missing=_missing(segments, file, unreadable, manifest.labels),
        coverage=count_coverage(
            source,
            split=segments["split"],
            duration_s=segments["end_s"].to_numpy() - segments["start_s"].to_numpy(),
            classes=segments["classes"].combine_chunks(),
            labels=manifest.labels,
            found=file >= 0,
            unreadable=unreadable,
        ),
    )


def parse_names(names: pa.ChunkedArray, ids: pa.Array) -> Names:
    """Parse the names of files, matching them with the ids that the CSVs list."""
    fields = pc.extract_regex(names, _NAME).combine_chunks()
    number = pc.index_in(fields.field("id"), ids)
    start = pc.if_else(pc.is_null(number), None, fields.field("start"))
    at_end = pc.struct_field(pc.extract_regex(names, _NAME_AT_END).combine_chunks(), "id")
    number = pc.fill_null(pc.coalesce(number, pc.index_in(at_end, ids)), -1)
    start = pc.if_else(pc.equal(start, ""), None, start).cast(pa.float64())
    return Names(
        id_number=number.to_numpy(zero_copy_only=False).astype(np.int64),
        start=start.to_numpy(zero_copy_only=False),
    )


def pair(names: Names, keys: Indices, *, whole: bool) -> tuple[Indices, Indices]:
    """Pair files with the segments that they can serve: indices of files, and of segments.

    A file with a START serves the segment that starts there, and precedes files without. A whole
    video serves all segments of its id; a clip without START serves one, if its id has only one.

    Args:
        names: of `F` files.
        keys: `[N]` ids and starts of the segments, from `segment_keys`.
        whole: whether files without START are whole videos.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    timed = np.flatnonzero((names.id_number >= 0) & ~np.isnan(names.start))
    number, start = names.id_number[timed], names.start[timed]
    index = _nearest(ordered, number, start * 1000)
    other_unit = index < 0
    index[other_unit] = _nearest(ordered, number[other_unit], start[other_unit])
    untimed = np.flatnonzero(names.without_start)
    number = names.id_number[untimed]
    first = np.searchsorted(ordered, number * SPAN_MS)
    num_served = np.searchsorted(ordered, (number + 1) * SPAN_MS) - first
    if not whole:
        num_served[num_served > 1] = 0
    before = np.cumsum(num_served) - num_served
    indices = np.repeat(first - before, num_served) + np.arange(num_served.sum())
    file = np.concatenate([timed[index >= 0], np.repeat(untimed, num_served)])
    return file, order[np.concatenate([index[index >= 0], indices])]


def choose(
    pairs: tuple[Indices, Indices], readable: Mask, num_segments: int
) -> tuple[Indices, Mask]:
    """`[N]` first readable file of each segment (-1: none), and whether it has only unreadable."""
    file, segment = pairs
    usable = np.flatnonzero(readable[file])
    served, first = np.unique(segment[usable], return_index=True)
    chosen = np.full(num_segments, -1)
    chosen[served] = file[usable[first]]
    has_file = np.zeros(num_segments, dtype=bool)
    has_file[segment] = True
    return chosen, has_file & (chosen < 0)


def _class_labels(segments: str) -> str:
    """The label CSV beside the segments."""
    path = storage.join(split_and_segments(segments)[1].rpartition("/")[0], CLASS_LABELS)
    if not storage.exists(path):
        raise UserError(path, "no such file", "give the label CSV with --class-labels")
    return path


def _nearest(ordered: Indices, number: Indices, start_ms: npt.NDArray[np.float64]) -> Indices:
    """Index in `ordered` of the segment with this id and start; -1: none."""
    key = number * SPAN_MS + np.minimum(np.rint(start_ms), SPAN_MS - 1).astype(np.int64)
    after = np.minimum(np.searchsorted(ordered, key), len(ordered) - 1)
    before = np.maximum(after - 1, 0)
    index = np.where(np.abs(key - ordered[before]) < np.abs(key - ordered[after]), before, after)
    near = np.abs(key - ordered[index]) < _TOLERANCE_MS
    return np.where(near & (ordered[index] // SPAN_MS == number), index, -1)


def _readable(listing: pa.Table) -> Mask:
    not_empty = pc.not_equal(listing["file_size_bytes"], 0)
    readable: Mask = pc.fill_null(not_empty, True).to_numpy()
    return readable


def _are_whole(listing: pa.Table, unclear: Mask, cut: str) -> tuple[bool, list[str]]:
    """Whether the unclear files are whole videos, and a note on how that was decided.

    The first file, the last and some evenly between are sampled; their majority decides for all.
    """
    file_indices = np.flatnonzero(unclear)
    if not len(file_indices) or cut != "auto":
        return cut == "no", []
    sampled = np.linspace(0, len(file_indices) - 1, min(SAMPLE_SIZE, len(file_indices)))
    files = listing.take(file_indices[sampled.astype(np.int64)]).to_pylist()
    with ThreadPoolExecutor(max_workers=8) as pool:
        lengths = list(pool.map(_duration_s, files))
    durations_s = [duration_s for duration_s in lengths if duration_s is not None]
    num_long = sum(duration_s > WHOLE_S for duration_s in durations_s)
    whole = num_long > len(durations_s) / 2
    meaning, other = ("whole videos", "yes") if whole else ("already cut clips", "no")
    return whole, [
        f"{len(file_indices):,} files named by an id alone are treated as {meaning}: {num_long} of "
        f"{len(durations_s)} whose length could be read last over {WHOLE_S:g} s; --cut {other} "
        f"overrides this"
    ]


def _duration_s(row: dict[str, Any]) -> float | None:
    """Length by the header, in seconds; None if unknown."""
    if row["row"] is not None:
        return None  # reading a row costs its row group, and nobody keeps whole videos in Parquet
    try:
        with storage.open_binary(row["uri"]) as file:
            if row["offset_bytes"] is not None:
                file.seek(row["offset_bytes"])
                file = io.BytesIO(file.read(row["size_bytes"]))
            return _header_duration_s(file)
    except (OSError, av.FFmpegError):
        return None


def _header_duration_s(file: io.IOBase) -> float | None:
    try:
        duration_s: float = soundfile.info(file).duration
        return duration_s
    except soundfile.LibsndfileError:
        file.seek(0)
    with av.open(file, "r") as container:
        return None if container.duration is None else container.duration / av.time_base


def _manifest(
    segments: pa.Table,
    listing: pa.Table,
    file: Indices,
    stretches: Mask,
    keys: Indices,
    labels: Sequence[str],
) -> Manifest:
    """The clips of segments that have a file; `stretches`: `[N]` segments to cut out of it."""
    kept = file >= 0
    rows = listing.take(file[kept])
    clips = segments.append_column("clip", _clip_ids(segments, keys)).filter(pa.array(kept))
    columns = {
        "id": clips["clip"],
        "uri": rows["uri"],
        "labels": _label_lists(clips, labels),
        "split": clips["split"],
        **{name: rows[name] for name in ("offset_bytes", "size_bytes", "row_group", "row")},
    }
    for name in ("start_s", "end_s"):
        columns[name] = pc.if_else(pa.array(stretches[kept]), clips[name], None)
    return from_columns(columns, labels)


def _clip_ids(segments: pa.Table, keys: Indices) -> pa.ChunkedArray:
    """YouTube's id, with the start in ms if the id has several segments."""
    number, start_ms = np.divmod(keys, SPAN_MS)
    several = np.bincount(number)[number] > 1
    numbered = pc.binary_join_element_wise(
        segments["id"], pa.array(start_ms).cast(pa.string()), "_"
    )
    return pc.if_else(pa.array(several), numbered, segments["id"])


def _label_lists(segments: pa.Table, labels: Sequence[str]) -> pa.ListArray:
    classes = segments["classes"].combine_chunks()
    names = pa.array(labels, pa.string()).take(classes.flatten())
    return pa.ListArray.from_arrays(classes.offsets, names)


def _missing(
    segments: pa.Table, file: Indices, unreadable: Mask, labels: Sequence[str]
) -> pa.Table:
    """The segments without a clip: id, split, labels, reason."""
    absent = file < 0
    rows = segments.filter(pa.array(absent))
    reason = pc.if_else(pa.array(unreadable[absent]), "file of 0 bytes", "no file")
    columns = {"id": rows["id"], "split": rows["split"], "labels": _label_lists(rows, labels)}
    return pa.table({**columns, "reason": reason})


def _notes(listing: pa.Table, pairs: tuple[Indices, Indices], file: Indices) -> list[str]:
    """Notes on files of the listing that were left out."""
    notes = []
    num_double = int(_readable(listing)[pairs[0]].sum() - (file >= 0).sum())
    if num_double:
        notes.append(f"left out {num_double:,} files of segments that have another file")
    is_extra = np.ones(listing.num_rows, dtype=bool)
    is_extra[pairs[0]] = False
    extra = np.flatnonzero(is_extra)
    if len(extra):
        names = ", ".join(listing["name"].take(extra[:3]).to_pylist())
        notes.append(f"left out {len(extra):,} files of no listed segment, such as {names}")
    return notes


def _nothing_found(source: str, listing: pa.Table) -> UserError:
    example = f", such as {listing['name'][0]}" if listing.num_rows else ""
    return UserError(
        source,
        f"none of {listing.num_rows} audio files holds a listed segment{example}",
        "expected ID.flac, YID.wav, TITLE [ID].webm, ID_START.wav or ID_START_END.wav, START in "
        "seconds or milliseconds",
    )
