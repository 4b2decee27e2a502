"""Which clip of a manifest stands for a planned one: that with the same id and audio."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import SCHEMA

LABELLING = ("labels", "split", "fold")
"""Columns of a manifest that the JSON in a tar repeats, and that change no audio."""
_AUDIO = tuple(name for name in SCHEMA.names if name not in ("id", "common", *LABELLING))

Rows = npt.NDArray[np.int64]


def match(planned: pa.Table, clips: pa.Table) -> Rows:
    """For each planned clip the row among `clips` with its id and audio, or -1.

    A clip that was planned twice, since it is to be tried again, is only used the second time.
    """
    found = pc.fill_null(pc.index_in(planned["id"], clips["id"]), -1)
    rows: Rows = found.to_numpy().astype(np.int64)
    for name in _AUDIO:
        known = np.flatnonzero(rows >= 0)
        now = clips[name].take(pa.array(rows[known]))
        rows[known[differing(planned[name].take(pa.array(known)), now)]] = -1
    used = np.flatnonzero(rows >= 0)[::-1]
    _, last = np.unique(rows[used], return_index=True)
    rows[np.delete(used, last)] = -1
    return rows


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
