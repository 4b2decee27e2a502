"""A Parquet file that is read in pieces: as many rows and columns as are needed at a time.

In: a file. Steps: compute its checksum, piece by piece; a file of a bucket is copied to an unnamed
local file meanwhile, so that it is fetched once; compare its columns with a schema. Out: a table
whose rows and columns are read, and checked as `parse_table` does, when they are asked for.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import IO, TYPE_CHECKING, Any, cast

from pipeline.errors import UserError, first_line
from pipeline.storage.documents import DocumentError, check_cells, check_columns
from pipeline.storage.faults import explained
from pipeline.storage.files import open_binary
from pipeline.storage.paths import is_remote
from pipeline.storage.temporary import explained_temporary

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

ROWS_AT_ONCE = 131_072
"""Rows of a piece, in whole row groups: some 20 MB of a data set's index."""

_PIECE_BYTES = 16_000_000


class TableFile:
    """A Parquet file of which rows and columns are read when they are asked for.

    Every method that reads raises `UserError` if the file is damaged.
    """

    def __init__(self, source: Any, schema: pa.Schema, *, where: str, remedy: str) -> None:
        """Open a Parquet file.

        Args:
            source: the file, as PyArrow opens it.
            schema: the columns, as `parse_table` takes them.
            where: its path, for messages.
            remedy: what to do about damage, for messages.
        """
        import pyarrow.parquet as pq

        self.schema = schema
        self._where, self._remedy = where, remedy
        try:
            self._file = pq.ParquetFile(source)
            columns = self._file.schema_arrow
        except Exception as error:
            raise self._damaged(error) from error
        self._check(check_columns, columns, schema)
        sizes = [
            self._file.metadata.row_group(number).num_rows
            for number in range(self._file.num_row_groups)
        ]
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self._starts[-1]

    @property
    def column_names(self) -> list[str]:
        """Names of the columns of the schema."""
        return list(self.schema.names)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """A column."""
        return self.select([name])[name]

    def read(self) -> pa.Table:
        """All of it."""
        return self.select(self.column_names)

    def select(self, names: Sequence[str]) -> pa.Table:
        """Some columns."""
        import pyarrow as pa

        empty = pa.schema([self.schema.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *self.pieces(names)])

    def row(self, number: int) -> dict[str, Any]:
        """One row; only its row group is read."""
        group = next(index for index, end in enumerate(self._starts[1:]) if 0 <= number < end)
        rows = self._read([group], self.column_names)
        (row,) = rows.slice(number - self._starts[group], 1).to_pylist()
        return dict(row)

    def pieces(
        self,
        names: Sequence[str],
        chosen: NDArray[np.bool_] | None = None,
        *,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> Iterator[pa.Table]:
        """Some columns, a piece of the rows at a time.

        Args:
            names: the columns.
            chosen: which rows, for each row; None: all. Row groups without any are not read.
            rows_at_once: as many as fit into whole row groups, at least one group.
        """
        import pyarrow as pa

        groups: list[int] = []
        for group, (start, end) in enumerate(pairwise(self._starts)):
            if groups and end - self._starts[groups[0]] > rows_at_once:
                yield from self._chosen(groups, names, chosen, pa)
                groups = []
            if start < end:
                groups.append(group)
        if groups:
            yield from self._chosen(groups, names, chosen, pa)

    def _chosen(
        self, groups: list[int], names: Sequence[str], chosen: NDArray[np.bool_] | None, pa: Any
    ) -> Iterator[pa.Table]:
        if chosen is None:
            yield self._read(groups, names)
            return
        mask = chosen[self._starts[groups[0]] : self._starts[groups[-1] + 1]]
        if mask.any():
            rows = self._read(groups, names)
            yield rows if mask.all() else rows.filter(pa.array(mask))

    def _read(self, groups: list[int], names: Sequence[str]) -> pa.Table:
        try:
            rows = self._file.read_row_groups(groups, columns=list(names)).select(list(names))
            rows.validate(full=True)
        # Damage makes the library raise errors of many unrelated types.
        except Exception as error:
            raise self._damaged(error) from error
        for name in names:
            self._check(check_cells, rows[name], self.schema.field(name))
        return rows

    def _check(self, check: Any, *what: Any) -> None:
        try:
            check(*what)
        except DocumentError as error:
            raise UserError(self._where, str(error), self._remedy) from error

    def _damaged(self, error: Exception) -> UserError:
        what = f"not a Parquet file, or damaged ({first_line(error)})"
        return UserError(self._where, what, self._remedy)


def open_whole(path: str) -> tuple[Any, str]:
    """A file as PyArrow opens it, and its SHA-256; one of a bucket is copied meanwhile.

    Raises:
        FileNotFoundError: no such file.
        NoFileError: a folder, pipe, socket or device.
    """
    import pyarrow as pa

    digest = hashlib.sha256()
    with explained(path), open_binary(path) as file, _copy_of(path) as copy:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
            copy.add(piece)
        # By its descriptor: the file that was read, even if another takes its place meanwhile.
        opened = copy.path or f"/proc/self/fd/{file.fileno()}"
        return pa.OSFile(opened), digest.hexdigest()


class _Copy:
    """Of a file in a bucket; of a local file there is none."""

    def __init__(self, path: str, file: IO[bytes] | None) -> None:
        self._copied, self._file = path, file

    @property
    def path(self) -> str:
        """Where it is; empty: there is none."""
        return str(self._file.name) if self._file else ""

    def add(self, piece: bytes) -> None:
        """Append bytes, which can be read at once."""
        if self._file is None:
            return
        with explained_temporary(f"a copy of {self._copied}"):
            left = memoryview(piece)
            while left:  # without a buffer, a write may end early
                left = left[self._file.write(left) :]


@contextmanager
def _copy_of(path: str) -> Iterator[_Copy]:
    """A copy to fill, which has no name once the block has ended."""
    if not is_remote(path):
        yield _Copy(path, None)
        return
    with tempfile.NamedTemporaryFile(buffering=0) as file:
        yield _Copy(path, cast(IO[bytes], file))
