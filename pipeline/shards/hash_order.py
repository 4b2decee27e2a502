"""Clips in the order of hashes of their ids, by split: sorted on the disk, partition by partition.

In: clips in any order, in batches. Out: those of a split in order, in tables of about a partition.
Clips of one Parquet row group, which is read once, stay together: they have a hash of that.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import SCHEMA
from pipeline.storage.stored_table import Partitions

_ROW = pa.field("_row", pa.int64())
_HASHES = tuple(pa.field(name, pa.uint64()) for name in ("_id_high", "_id_low"))
_GROUP_HASHES = tuple(pa.field(name, pa.uint64()) for name in ("_group_high", "_group_low"))
"""Null: the clip is alone."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """Clips in order."""

    clips: pa.Table
    rows: npt.NDArray[np.int64]
    """The number that each was added with."""


class HashOrder:
    """Clips to be ordered."""

    def __init__(self, num_clips: int, partition_rows: int) -> None:
        """`num_clips`: about how many will be added."""
        self._num_partitions = max(1, num_clips // partition_rows)
        self._partitions = Partitions(pa.schema([*SCHEMA, _ROW, *_HASHES, *_GROUP_HASHES]))
        self.num_clips = Counter[str]()
        """By split."""

    def add(self, clips: pa.Table, rows: npt.NDArray[np.int64]) -> None:
        """Add clips with a number each, which are given back with them."""
        ids = _hashes(clips["id"])
        columns = {_ROW: pa.array(rows)}
        columns.update((field, pa.array(ids[:, i])) for i, field in enumerate(_HASHES))
        first = ids[:, 0]
        if clips["row_group"].null_count < clips.num_rows:
            in_group = clips["row_group"].is_valid()
            groups = pc.binary_join_element_wise(
                clips["uri"], pc.cast(clips["row_group"], pa.string()), "#"
            )
            hashes = _hashes(pc.fill_null(groups, ""))
            for i, field in enumerate(_GROUP_HASHES):
                columns[field] = pc.if_else(in_group, pa.array(hashes[:, i]), None)
            first = np.where(in_group.to_numpy(), hashes[:, 0], first)
        for field in (_ROW, *_HASHES, *_GROUP_HASHES):
            column = columns.get(field, pa.nulls(clips.num_rows, field.type))
            clips = clips.append_column(field, column)
        # In the order of the hashes, as the first is compared first.
        partitions = (first >> np.uint64(32)) * np.uint64(self._num_partitions) >> np.uint64(32)
        for split in pc.unique(clips["split"]).to_pylist():
            is_in_split = pc.equal(clips["split"], split)
            of_split = clips.filter(is_in_split)
            self.num_clips[split] += of_split.num_rows
            numbers = partitions[is_in_split.to_numpy()].astype(np.int32)
            self._partitions.scatter(of_split, numbers, split)

    def read(self, split: str) -> Iterator[Ordered]:
        """The clips of a split in order."""
        for number in range(self._num_partitions):
            clips = self._partitions.read((split, number))
            if clips.num_rows:
                clips = clips.take(pa.array(_order(clips)))
                yield Ordered(clips.select(SCHEMA.names), clips[_ROW.name].to_numpy())


def _order(clips: pa.Table) -> npt.NDArray[np.int64]:
    own = [clips[field.name] for field in _HASHES]
    groups = [
        pc.coalesce(clips[field.name], hashes).to_numpy()
        for field, hashes in zip(_GROUP_HASHES, own, strict=True)
    ]
    keys = (own[1].to_numpy(), own[0].to_numpy(), groups[1], groups[0])
    order: npt.NDArray[np.int64] = np.argsort(keys[-1], kind="stable")
    ordered = keys[-1][order]
    has_ties = bool((ordered[1:] == ordered[:-1]).any())
    return np.lexsort(keys) if has_ties else order


def _hashes(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """`[N, 2]`: 128 bits per text."""
    blake2b = hashlib.blake2b
    values = texts.cast(pa.binary()).to_pylist()
    data = b"".join([blake2b(value, digest_size=16).digest() for value in values])
    return np.frombuffer(data, ">u8").astype(np.uint64).reshape(-1, 2)
