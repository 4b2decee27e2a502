"""Tables of any length: on the local disk, appended to and read in batches.

In: tables of one schema. Out: the same rows, in batches, by partition, by row, or by column, each
of which takes only the memory of what it returns. The file lies in the folder for temporary files,
where it has no name, so that nothing is left of it however the process ends.
"""

import os
import tempfile
import weakref
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.storage.temporary import explained_temporary

BATCH_ROWS = 2**17
"""Rows that are worked on at once."""


_PLACE = pa.field("_place", pa.int64())


class StoredTable:
    """A table on the disk; what it returns is like that of `pyarrow.Table`.

    Rows are appended first; the first read ends that.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._ends = [0]
        """Rows up to the end of each batch, after a 0."""
        self._cached: tuple[int, pa.Table] | None = None
        with explained_temporary("a temporary table"):
            descriptor, path = tempfile.mkstemp(prefix="ast-ray-")
            weakref.finalize(self, os.close, descriptor)
            Path(path).unlink()
            self._path = f"/dev/fd/{descriptor}"
            self._sink = pa.OSFile(self._path, "wb")
            options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
            self._writer = pa.ipc.new_file(self._sink, schema, options=options)
        self._source: pa.NativeFile | None = None

    def append(self, rows: pa.Table) -> None:
        """Append rows as one batch.

        Raises:
            UserError: the disk is full.
        """
        if not rows.num_rows:
            return
        columns = [column.combine_chunks() for column in rows.select(self.schema.names).columns]
        with explained_temporary("a temporary table"):
            self._writer.write_batch(pa.record_batch(columns, schema=self.schema))
        self._ends.append(self._ends[-1] + rows.num_rows)

    @property
    def num_rows(self) -> int:
        """Rows so far."""
        return self._ends[-1]

    @property
    def num_batches(self) -> int:
        """Batches so far."""
        return len(self._ends) - 1

    @property
    def column_names(self) -> list[str]:
        """Names of the columns."""
        names: list[str] = self.schema.names
        return names

    def batches(self, names: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All rows, or some columns of them, in the batches that were appended."""
        yield from self.read(range(self.num_batches), names)

    def read(
        self, numbers: Sequence[int], names: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Some of the batches."""
        reader = self._reader(names)
        for number in numbers:
            table = pa.Table.from_batches([reader.get_batch(number)])
            yield table if names is None else table.select(list(names))

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredTable | pa.Table) and self.equals(other)

    def equals(self, other: "pa.Table | StoredTable") -> bool:
        """Whether another table has the same columns and rows."""
        if self.column_names != other.column_names:
            return False
        whole: bool = self.select(self.column_names).equals(other.select(self.column_names))
        return whole

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        chunks = [batch[name].chunk(0) for batch in self.batches([name])]
        return pa.chunked_array(chunks, self.schema.field(name).type)

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns, in memory."""
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.concat_tables([schema.empty_table(), *self.batches(names)])

    def slice(self, start: int, num_rows: int | None = None) -> pa.Table:
        """Neighbouring rows, in memory."""
        end = self.num_rows if num_rows is None else min(start + num_rows, self.num_rows)
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        tables = [self.schema.empty_table()]
        for number in range(first, self.num_batches):
            if self._ends[number] >= end:
                break
            offset = max(0, start - self._ends[number])
            length = min(end, self._ends[number + 1]) - self._ends[number] - offset
            tables.append(self._batch(number).slice(offset, length))
        return pa.concat_tables(tables).combine_chunks()

    def take(self, indices: Any) -> pa.Table:
        """Rows by their numbers, in memory."""
        rows = np.asarray(indices, dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        bounds = np.searchsorted(ordered, self._ends)
        tables = [self.schema.empty_table()]
        for number in np.flatnonzero(bounds[1:] > bounds[:-1]):
            within = ordered[bounds[number] : bounds[number + 1]] - self._ends[number]
            tables.append(self._batch(int(number)).take(pa.array(within)))
        back = np.empty(len(rows), dtype=np.int64)
        back[order] = np.arange(len(rows))
        return pa.concat_tables(tables).take(pa.array(back))

    def filter(self, mask: Any) -> pa.Table:
        """The rows where a mask is true, in memory."""
        return self.take(np.flatnonzero(np.asarray(mask, dtype=bool)))

    def to_pylist(self) -> list[dict[str, Any]]:
        """All rows as dictionaries."""
        return [row for batch in self.batches() for row in batch.to_pylist()]

    def _batch(self, number: int) -> pa.Table:
        """A batch; the last one is kept, as neighbouring rows are often read in turn."""
        cached = self._cached
        if cached is None or cached[0] != number:
            cached = (number, next(iter(self.read([number]))))
            self._cached = cached
        return cached[1]

    def _reader(self, names: Sequence[str] | None) -> Any:
        if self._source is None:
            with explained_temporary("a temporary table"):
                self._writer.close()
                self._sink.close()
                self._source = pa.OSFile(self._path, "rb")
        fields = [] if names is None else [self.schema.get_field_index(name) for name in names]
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        return pa.ipc.open_file(self._source, options=options)


class Partitions:
    """A table on the disk of which each row belongs to a partition."""

    def __init__(self, schema: pa.Schema) -> None:
        self._table = StoredTable(schema)
        self._batches: dict[Hashable, list[int]] = {}

    @property
    def num_rows(self) -> int:
        """Rows of all partitions so far."""
        return self._table.num_rows

    def append(self, key: Hashable, rows: pa.Table) -> None:
        """Append rows to a partition."""
        if rows.num_rows:
            self._batches.setdefault(key, []).append(self._table.num_batches)
            self._table.append(rows)

    def scatter(self, rows: pa.Table, numbers: npt.NDArray[Any], prefix: Hashable = None) -> None:
        """Append each row to the partition of its number, or, with a prefix, of both."""
        order = np.argsort(numbers, kind="stable")
        ordered = rows.take(pa.array(order))
        present, starts = np.unique(numbers[order], return_index=True)
        ends = np.append(starts[1:], len(order))[: len(starts)].tolist()
        for number, start, end in zip(present.tolist(), starts.tolist(), ends, strict=True):
            key = number if prefix is None else (prefix, number)
            self.append(key, ordered.slice(start, end - start))

    def read(self, key: Hashable, names: Sequence[str] | None = None) -> pa.Table:
        """The rows of a partition, in the order in which they were appended."""
        schema = self._table.schema
        if names is not None:
            schema = pa.schema([schema.field(name) for name in names])
        found = self._table.read(self._batches.get(key, []), names)
        return pa.concat_tables([schema.empty_table(), *found]).combine_chunks()


def taken(
    table: pa.Table | StoredTable, rows: npt.NDArray[np.int64], range_rows: int = BATCH_ROWS
) -> StoredTable:
    """Rows of a table by their numbers, each at most once, in any order and any number of them.

    Args:
        table: the table, which is read once, in its own order.
        rows: the numbers.
        range_rows: how many rows are brought into their order at once.
    """
    places = np.full(table.num_rows, -1, dtype=np.int64)
    places[rows] = np.arange(len(rows))
    ranges = Partitions(table.schema.append(_PLACE))
    start = 0
    for batch in batches(table):
        own = places[start : start + batch.num_rows]
        start += batch.num_rows
        wanted = batch.append_column(_PLACE, pa.array(own)).filter(pa.array(own >= 0))
        ranges.scatter(wanted, own[own >= 0] // range_rows)
    result = StoredTable(table.schema)
    for number in range(-(-len(rows) // range_rows)):
        part = ranges.read(number)
        ordered = part.take(pa.array(np.argsort(part[_PLACE.name].to_numpy())))
        result.append(ordered.select(table.schema.names))
    return result


def batches(
    table: pa.Table | StoredTable, names: Sequence[str] | None = None, num_rows: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """The rows of a table in memory or on the disk, or some columns of them, in batches."""
    if isinstance(table, StoredTable):
        yield from table.batches(names)
        return
    selected = table if names is None else table.select(names)
    for start in range(0, selected.num_rows, num_rows):
        yield selected.slice(start, num_rows)
