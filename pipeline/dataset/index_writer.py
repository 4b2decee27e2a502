"""The index of a data set, written piece by piece; the same clips give the same bytes.

In: rows in order, in pieces of any size. Steps: collect them to whole row groups, write these into
a new file and hash it. Out: the file, once it is committed, and its checksum.
"""

import hashlib
import io
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.prepared import INDEX_ROWS_PER_GROUP


class IndexWriter:
    """A `with` block that ends without `commit` leaves no file."""

    def __init__(
        self, path: str, schema: pa.Schema, *, rows_per_group: int = INDEX_ROWS_PER_GROUP
    ) -> None:
        self._file = storage.new_file(path)
        self._sink = _Sink(self._file)
        self._writer = pq.ParquetWriter(self._sink, schema, compression="zstd")
        self._rows_per_group = rows_per_group
        self._waiting = schema.empty_table()
        self._is_empty = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # It would end its file when it is deleted, if not before.
        self._sink.is_discarded = True
        self._writer.close()
        self._file.__exit__(kind, error, traceback)

    @property
    def sha256(self) -> str:
        """Of the file, once it is committed."""
        return self._sink.digest.hexdigest()

    def write(self, rows: pa.Table) -> None:
        """Append rows."""
        self._waiting = pa.concat_tables([self._waiting, rows])
        while self._waiting.num_rows >= self._rows_per_group:
            self._write_group()

    def commit(self) -> None:
        """Put the file in place."""
        if self._waiting.num_rows or self._is_empty:
            self._write_group()
        self._writer.close()
        self._file.commit()

    def _write_group(self) -> None:
        group = self._waiting.slice(0, self._rows_per_group)
        self._waiting = self._waiting.slice(self._rows_per_group)
        self._writer.write_table(group, row_group_size=self._rows_per_group)
        self._is_empty = False


class _Sink(io.RawIOBase):
    """What PyArrow writes to: passes the bytes on, and hashes them."""

    def __init__(self, file: storage.NewFile) -> None:
        super().__init__()
        self._file, self._position = file, 0
        self.digest = hashlib.sha256()
        self.is_discarded = False

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if not self.is_discarded:
            self.digest.update(view)
            self._file.write(view)
        self._position += view.nbytes
        return view.nbytes
