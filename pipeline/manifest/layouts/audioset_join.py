"""Segments joined with the files that can serve them, for some ids of YouTube's at a time.

In: all segments of some ids, and all files named after these. Out: the file of each segment.

N segments of I different ids, F files.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.coverage import Mask
from pipeline.manifest.layouts.segments import SPAN_MS, segment_keys

Indices = npt.NDArray[np.int64]

_TOLERANCE_MS = 1000
"""Starts in names are often whole seconds where the CSV has tenths."""
_ORDER = ("name", "uri", "offset_bytes", "row_group", "row")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Joined:
    """Segments and files."""

    segments: pa.Table
    """`[N]`, without duplicates."""
    num_duplicates: int
    clip_ids: pa.ChunkedArray
    """`[N]` YouTube's id, with the start in ms if the id has several segments."""
    files: pa.Table
    """`[F]`."""
    file: Indices
    """`[N]` the first readable file of each segment; -1: none."""
    unreadable: Mask
    """`[N]` whether it has only unreadable files."""
    stretches: Mask
    """`[N]` whether to cut it out of its file."""
    num_double: int
    """Readable files of segments that have another."""
    unlisted: Mask
    """`[F]` files of no segment."""


def join(segments: pa.Table, files: pa.Table, *, whole: bool) -> Joined:
    """Choose a file for each segment.

    Args:
        segments: in the order of the CSVs; of several with the same id and start the first counts.
        files: with the columns `id` and `start` of their names.
        whole: whether files without START are whole videos.
    """
    segments, num_duplicates = without_duplicates(segments)
    keys, ids = segment_keys(segments)
    files = _ordered(files)
    names = match_names(files, ids)
    pairs = pair(names, keys, whole=whole)
    can_be_read = readable(files)
    file, unreadable = choose(pairs, can_be_read, segments.num_rows)
    unlisted = np.ones(files.num_rows, dtype=bool)
    unlisted[pairs[0]] = False
    found = file >= 0
    stretches = np.zeros(segments.num_rows, dtype=bool)
    stretches[found] = whole & names.without_start[file[found]]
    return Joined(
        segments=segments,
        num_duplicates=num_duplicates,
        clip_ids=_clip_ids(segments, keys),
        files=files,
        file=file,
        unreadable=unreadable,
        stretches=stretches,
        num_double=int(can_be_read[pairs[0]].sum() - found.sum()),
        unlisted=unlisted,
    )


def without_duplicates(segments: pa.Table) -> tuple[pa.Table, int]:
    """The first of the segments with the same id and start, and how many others there are."""
    _, first = np.unique(segment_keys(segments)[0], return_index=True)
    num_duplicates = segments.num_rows - len(first)
    if num_duplicates:
        segments = segments.take(pa.array(np.sort(first)))
    return segments, num_duplicates


def match_names(files: pa.Table, ids: pa.Array) -> Names:
    """Match the ids in the names of files with those that the CSVs list."""
    number = pc.fill_null(pc.index_in(files["id"], ids), -1)
    return Names(
        id_number=number.to_numpy().astype(np.int64),
        start=files["start"].to_numpy(),
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


def readable(files: pa.Table) -> Mask:
    """`[F]` files that are not empty."""
    not_empty = pc.not_equal(files["file_size_bytes"], 0)
    mask: Mask = pc.fill_null(not_empty, True).to_numpy()
    return mask


def _ordered(files: pa.Table) -> pa.Table:
    """Files of one id in a fixed order, so that every run picks the same of two for a segment."""
    ids = files["id"].combine_chunks().dictionary_encode()
    numbers = ids.indices.to_numpy()
    has_others = np.bincount(numbers)[numbers] > 1 if len(numbers) else np.zeros(0, dtype=bool)
    if not has_others.any():
        return files
    several = files.filter(pa.array(has_others)).sort_by([(name, "ascending") for name in _ORDER])
    return pa.concat_tables([several, files.filter(pa.array(~has_others))]).combine_chunks()


def _nearest(ordered: Indices, number: Indices, start_ms: npt.NDArray[np.float64]) -> Indices:
    """Index in `ordered` of the segment with this id and start; -1: none."""
    key = number * SPAN_MS + np.minimum(np.rint(start_ms), SPAN_MS - 1).astype(np.int64)
    after = np.minimum(np.searchsorted(ordered, key), len(ordered) - 1)
    before = np.maximum(after - 1, 0)
    index = np.where(np.abs(key - ordered[before]) < np.abs(key - ordered[after]), before, after)
    near = np.abs(key - ordered[index]) < _TOLERANCE_MS
    return np.where(near & (ordered[index] // SPAN_MS == number), index, -1)


def _clip_ids(segments: pa.Table, keys: Indices) -> pa.ChunkedArray:
    number, start_ms = np.divmod(keys, SPAN_MS)
    several = np.bincount(number)[number] > 1
    if not several.any():
        return segments["id"]
    numbered = pc.binary_join_element_wise(
        segments["id"], pa.array(start_ms).cast(pa.string()), "_"
    )
    return pc.if_else(pa.array(several), numbered, segments["id"])
