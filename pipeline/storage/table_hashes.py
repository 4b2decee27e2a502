"""Hashes of tables: of every cell, or of each clip.

N rows.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pipeline.storage.stored_table import StoredTable, batches

Hashes = npt.NDArray[np.uint64]

_Layer = tuple[memoryview, npt.NDArray[np.int64]]
"""Bytes of a column, and `[N + 1]` where those of each row begin."""
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


class RangeHasher:
    """Hashes ranges of rows of a table in memory: many small ones cost little more than a large."""

    def __init__(self, rows: pa.Table) -> None:
        self._layers = [
            layer(column.combine_chunks())
            for column in rows.columns
            for layer in _layers(column.type)
        ]

    def hash(self, start: int, end: int) -> str:
        """What `content_hash` is of these rows."""
        digest = hashlib.sha256()
        for data, bounds in self._layers:
            digest.update(data[bounds[start] : bounds[end]])
        return digest.hexdigest()


def content_hash(rows: pa.Table | StoredTable, names: Sequence[str] | None = None) -> str:
    """Hash of every cell of a table, or of some columns, whatever its layout.

    It is one of column after column, and so reads each column of a stored table several times.
    """
    digest = hashlib.sha256()
    for name in rows.column_names if names is None else names:
        for layer in _layers(rows.schema.field(name).type):
            for batch in batches(rows, [name]):
                data, bounds = layer(batch[name].combine_chunks())
                digest.update(data[bounds[0] : bounds[-1]])
    return digest.hexdigest()


def row_hashes(rows: pa.Table) -> Hashes:
    """`[N]`: 64 bits for the cells of each row; null is not equal to any value."""
    hashes = np.zeros(rows.num_rows, np.uint64)
    for column in rows.columns:
        hashes = _mixed(hashes * _MIX[0] + _column_hashes(column.combine_chunks()))
    return hashes


def text_hashes(texts: pa.ChunkedArray | pa.Array) -> Hashes:
    """`[N]`: 64 bits of each text; none may be null."""
    values = texts.cast(pa.binary()).to_pylist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, values), np.uint64, len(values))


def _column_hashes(column: pa.Array) -> Hashes:
    if pa.types.is_list(column.type):
        return _list_hashes(column)
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    if is_null.all():
        return np.zeros(len(column), np.uint64)
    if pa.types.is_string(column.type):
        hashes = text_hashes(_filled(column))
    else:
        values = _filled(column).to_numpy(zero_copy_only=False)
        hashes = _mixed(values.astype(np.float64 if values.dtype.kind == "f" else np.int64))
    hashes[is_null] = 0
    return hashes


def _list_hashes(column: pa.Array) -> Hashes:
    """Those of the items, each by its place in the list."""
    lengths = _list_lengths(column)
    hashes = _mixed(lengths.astype(np.int64))
    ends = np.cumsum(np.maximum(lengths, 0))
    distinct = column.flatten().dictionary_encode()
    items = _column_hashes(distinct.dictionary)[distinct.indices.to_numpy()]
    starts = ends - np.maximum(lengths, 0)
    for place in range(int(lengths.max(initial=0))):
        has = np.flatnonzero(lengths > place)
        hashes[has] = _mixed(hashes[has] * _MIX[0] + items[starts[has] + place])
    return hashes


def _mixed(values: npt.NDArray[Any]) -> Hashes:
    """Each number spread over 64 bits."""
    bits = values.view(np.uint64)
    bits = (bits ^ (bits >> np.uint64(32))) * _MIX[0] + _MIX[1]
    bits = (bits ^ (bits >> np.uint64(29))) * _MIX[1]
    mixed: Hashes = bits ^ (bits >> np.uint64(32))
    return mixed


def _layers(kind: pa.DataType) -> list[Callable[[pa.Array], _Layer]]:
    if pa.types.is_list(kind):
        return [
            _nulls,
            _lengths,
            *(partial(_of_items, layer) for layer in _layers(kind.value_type)),
        ]
    if pa.types.is_string(kind):
        return [_nulls, _text_lengths, _text]
    return [_nulls, _values]


def _nulls(column: pa.Array) -> _Layer:
    return _fixed(column.is_null().to_numpy(zero_copy_only=False))


def _lengths(column: pa.Array) -> _Layer:
    return _fixed(_list_lengths(column))


def _of_items(layer: Callable[[pa.Array], _Layer], column: pa.Array) -> _Layer:
    data, bounds = layer(column.flatten())
    ends = np.cumsum(np.maximum(_list_lengths(column), 0), dtype=np.int64)
    return data, bounds[np.concatenate([[0], ends])]


def _text_lengths(column: pa.Array) -> _Layer:
    return _fixed(pc.binary_length(_filled(column)).to_numpy())


def _text(column: pa.Array) -> _Layer:
    filled = _filled(column)
    if not len(filled):
        return memoryview(b""), np.zeros(1, np.int64)
    _, offsets, data = filled.buffers()
    numbers = np.frombuffer(offsets, np.int32)[filled.offset : filled.offset + len(filled) + 1]
    return memoryview(data or b"").cast("B"), numbers.astype(np.int64)


def _values(column: pa.Array) -> _Layer:
    return _fixed(_filled(column).to_numpy(zero_copy_only=False))


def _fixed(values: npt.NDArray[Any]) -> _Layer:
    data = np.ascontiguousarray(values)
    bounds = np.arange(len(data) + 1, dtype=np.int64) * data.itemsize
    return memoryview(data.tobytes()), bounds


def _list_lengths(column: pa.Array) -> npt.NDArray[np.int32]:
    lengths: npt.NDArray[np.int32] = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    return lengths


def _filled(column: pa.Array) -> pa.Array:
    if not column.null_count:
        return column
    empty = "" if pa.types.is_string(column.type) else 0
    return pc.fill_null(column, pa.scalar(empty).cast(column.type))
