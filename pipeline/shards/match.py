"""Which clip of a manifest stands for a planned one: that with the same id and audio.

Clips are compared by hashes of 64 bits, of the id and of the audio's place: 16 bytes per clip in
memory.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import SCHEMA
from pipeline.storage.stored_table import StoredTable, batches
from pipeline.storage.table_hashes import Hashes, row_hashes, text_hashes

LABELLING = ("labels", "split", "fold")
"""Columns of a manifest that the JSON in a tar repeats, and that change no audio."""
_AUDIO = tuple(name for name in SCHEMA.names if name not in ("id", "common", *LABELLING))

Rows = npt.NDArray[np.int64]


def match(planned: pa.Table | StoredTable, clips: pa.Table | StoredTable) -> Rows:
    """For each planned clip the row among `clips` with its id and audio, or -1.

    A clip that was planned twice, since it is to be tried again, is only used the second time.
    """
    rows = find_ids(id_hashes(planned), id_hashes(clips))
    known = np.flatnonzero(rows >= 0)
    is_same = hashes_of(planned, _AUDIO)[known] == hashes_of(clips, _AUDIO)[rows[known]]
    rows[known[~is_same]] = -1
    return used_last(rows)


def used_last(rows: Rows) -> Rows:
    """The same rows, but of those that are repeated only the last; -1 in place of the others."""
    used = np.flatnonzero(rows >= 0)[::-1]
    _, last = np.unique(rows[used], return_index=True)
    result = rows.copy()
    result[np.delete(used, last)] = -1
    return result


def find_ids(wanted: Hashes, ids: Hashes) -> Rows:
    """For each wanted id its number among `ids`, or -1."""
    rows = np.full(len(wanted), -1, dtype=np.int64)
    if not len(ids):
        return rows
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    by_hash = np.argsort(wanted, kind="stable")  # neighbours are found in neighbouring memory
    places = np.minimum(np.searchsorted(ordered, wanted[by_hash]), len(ids) - 1)
    is_found = ordered[places] == wanted[by_hash]
    rows[by_hash[is_found]] = order[places[is_found]]
    return rows


def id_hashes(clips: pa.Table | StoredTable) -> Hashes:
    """`[N]`: a hash of each clip's id."""
    hashes = [text_hashes(batch["id"]) for batch in batches(clips, ["id"])]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def hashes_of(clips: pa.Table | StoredTable, names: Sequence[str]) -> Hashes:
    """`[N]`: a hash of some cells of each clip."""
    hashes = [row_hashes(batch) for batch in batches(clips, names)]
    return np.concatenate([np.empty(0, np.uint64), *hashes])


def differing(first: pa.ChunkedArray, second: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Where two columns of equal length and type differ; null equals null."""
    if pa.types.is_list(first.type):
        return _differing_lists(first.combine_chunks(), second.combine_chunks())
    differs = pc.fill_null(pc.not_equal(first, second), False)
    return _bools(pc.or_(differs, pc.xor(pc.is_null(first), pc.is_null(second))))


def _differing_lists(first: pa.Array, second: pa.Array) -> npt.NDArray[np.bool_]:
    lengths = [
        pc.fill_null(pc.list_value_length(lists), -1).to_numpy() for lists in (first, second)
    ]
    differs = np.array(lengths[0] != lengths[1])
    alike = np.flatnonzero(~differs)
    items = [lists.take(pa.array(alike)).flatten() for lists in (first, second)]
    owners = np.repeat(alike, np.maximum(lengths[0][alike], 0))
    differs[owners[_bools(pc.not_equal(*items))]] = True
    return differs


def _bools(column: Any) -> npt.NDArray[np.bool_]:
    values: npt.NDArray[np.bool_] = np.array(column.to_numpy(zero_copy_only=False), dtype=bool)
    return values
