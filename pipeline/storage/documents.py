"""JSON documents and Parquet tables, read and written as a whole, or tables batch by batch.

A document that this program writes is a dataclass; pydantic checks it when it is read. A table has
a schema. Whatever else a file holds is one error, which names the keys or columns.
PyArrow and pydantic are loaded where they are used: `--help` need not wait for them.
"""

from __future__ import annotations

import codecs
import io
import json
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import UserError, first_line
from pipeline.storage.files import NewFile, new_file, open_binary, read_bytes, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import TypeAdapter, ValidationError

Document = TypeVar("Document")

_NUM_FAULTS_SHOWN = 3
_BATCH_ROWS = 2**17
ROWS_PER_GROUP = 2**20
"""Rows in a row group of a large table."""

_adapters: dict[type[Any], TypeAdapter[Any]] = {}


class DocumentError(ValueError):
    """A file that is no JSON or Parquet, or whose keys, columns or values are not as expected."""


def parse_document(data: bytes | str, kind: type[Document]) -> Document:
    """A dataclass from JSON text; keys unknown to the class are ignored.

    Raises:
        DocumentError: names the path of each invalid key.
    """
    from pydantic import ValidationError
    from pydantic_core import from_json

    try:
        from_json(data, allow_inf_nan=False)
        document: Document = _adapter(kind).validate_json(data, strict=True)
    except ValidationError as error:
        raise DocumentError(_faults(error)) from error
    except ValueError as error:
        raise DocumentError(f"not valid JSON ({error})") from error
    return document


def conform(value: object, kind: type[Document]) -> Document:
    """A dataclass from dictionaries and lists, such as those of a checkpoint.

    Raises:
        DocumentError: names the path of each invalid key.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentError(f"has values that JSON cannot hold ({first_line(error)})") from error
    return parse_document(text, kind)


def read_document(path: str, kind: type[Document], remedy: str) -> Document:
    """Read a JSON document as the dataclass it was written from.

    Raises:
        FileNotFoundError: no such file.
        UserError: it is damaged; names the invalid keys and the remedy.
    """
    try:
        return parse_document(read_bytes(path), kind)
    except DocumentError as error:
        raise UserError(path, f"damaged: {error}", remedy) from error


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    shown = []
    for fault in faults[:_NUM_FAULTS_SHOWN]:
        path = ".".join(map(str, fault["loc"]))
        what = fault["msg"].replace("Input should be", "must be")
        if fault["type"] == "value_error":
            # What `__post_init__` raises says which field it is about, and its value.
            what = what.removeprefix("Value error, ")
        elif fault["type"] != "missing":
            what += f", got {reprlib.repr(fault['input'])}"
        shown.append(f"{path}: {what}" if path else what)
    more = len(faults) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def parse_json(data: bytes) -> Any:
    """JSON text. Raises ValueError also for text that is not UTF-8 and for too deep a nesting."""
    from pydantic_core import from_json

    return from_json(data.removeprefix(codecs.BOM_UTF8))


def read_json(path: str) -> Any:
    """A JSON document. Raises ValueError as `parse_json`."""
    return parse_json(read_bytes(path))


def write_json(path: str, document: object) -> None:
    """Write a JSON document, keys in the given order. Raises ValueError for NaN."""
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def parse_table(data: bytes, schema: pa.Schema | None = None) -> pa.Table:
    """A table from the content of a Parquet file.

    Args:
        data: the content.
        schema: the columns to return, each of which must have its type and, unless it is nullable,
            no empty cell; columns unknown to it are dropped. None: any columns.

    Raises:
        DocumentError: it is no Parquet file, or damaged, or its columns do not match the schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _damage():
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        table.validate(full=True)
    if schema is None:
        return table
    check_columns(table.schema, schema)
    for field in schema:
        check_cells(table[field.name], field)
    return table.select(schema.names)


def read_table(path: str, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file as a table; raises as `read_bytes` and `parse_table`."""
    return parse_table(read_bytes(path), schema)


def iter_table(path: str, schema: pa.Schema, batch_rows: int = _BATCH_ROWS) -> Iterator[pa.Table]:
    """Read a Parquet file batch by batch: first an empty one, with all columns of the file.

    Args:
        path: of the file.
        schema: the columns to return of those that it has.
        batch_rows: most rows of a batch.

    Raises:
        FileNotFoundError: no such file.
        DocumentError: it is no Parquet file, or damaged; if in the middle, after some batches.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_binary(path) as file:
        with _damage():
            opened = pq.ParquetFile(file)
            present = opened.schema_arrow
            empty = present.empty_table()
        yield empty
        names = [name for name in schema.names if name in present.names]
        rows = opened.iter_batches(batch_rows, columns=names)
        while True:
            with _damage():
                batch = next(rows, None)
                if batch is None:
                    return
                batch.validate(full=True)
            yield pa.Table.from_batches([batch])


@contextmanager
def _damage() -> Iterator[None]:
    """Raises a DocumentError for whatever the library raises of a damaged file: many types."""
    try:
        yield
    except UserError:
        raise  # of the storage
    except Exception as error:
        raise DocumentError(f"not a Parquet file, or damaged ({first_line(error)})") from error


def check_columns(found: pa.Schema, expected: pa.Schema) -> None:
    """Raise DocumentError unless a table has each expected column once, of its type."""
    for field in expected:
        count = found.names.count(field.name)
        if count != 1:
            has = f"{count} columns" if count else "no column"
            raise DocumentError(f"has {has} {field.name!r}")
        kind = found.field(field.name).type
        if kind != field.type:
            raise DocumentError(f"column {field.name!r} is {kind}, expected {field.type}")


def check_cells(column: pa.ChunkedArray, field: pa.Field) -> None:
    """Raise DocumentError for an empty cell, in a list or where the field allows none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    num_empty = 0 if field.nullable else column.null_count
    if pa.types.is_list(field.type):
        num_empty += pc.list_flatten(column).null_count
    if num_empty:
        raise DocumentError(f"column {field.name!r} has {num_empty} empty cells")


def encode_table(table: pa.Table, rows_per_group: int | None = None) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=rows_per_group)
    return buffer.getvalue()


def write_batches(
    path: str,
    schema: pa.Schema,
    batches: Iterable[pa.Table],
    rows_per_group: int = ROWS_PER_GROUP,
) -> None:
    """Write a table as Parquet of which the rows come in batches; the same rows, the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with new_file(path) as file:
        sink = pa.PythonFile(_Sink(file), "w")
        with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
            waiting = schema.empty_table()
            for batch in batches:
                waiting = pa.concat_tables([waiting, batch])
                while waiting.num_rows >= rows_per_group:
                    writer.write_table(
                        waiting.slice(0, rows_per_group).combine_chunks(), rows_per_group
                    )
                    waiting = waiting.slice(rows_per_group)
            if waiting.num_rows:
                writer.write_table(waiting.combine_chunks(), rows_per_group)
        file.commit()


class _Sink:
    """A new file as PyArrow writes to it; closing it does not put it in place."""

    closed = False

    def __init__(self, file: NewFile) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        return view.nbytes

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as Parquet."""
    write_bytes(path, encode_table(table))
