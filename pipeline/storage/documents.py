"""JSON documents and Parquet tables, read and written as a whole.

A document that this program writes is a dataclass; pydantic checks it when it is read. A table has
a schema. Whatever else a file holds is one error, which names the keys or columns.
PyArrow and pydantic are loaded where they are used: `--help` need not wait for them.
"""

from __future__ import annotations

import codecs
import io
import json
import reprlib
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import UserError, first_line
from pipeline.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import TypeAdapter, ValidationError

Document = TypeVar("Document")

_NUM_FAULTS_SHOWN = 3

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

    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read()
        table.validate(full=True)
    # Damage makes the library raise errors of many unrelated types.
    except Exception as error:
        raise DocumentError(f"not a Parquet file, or damaged ({first_line(error)})") from error
    if schema is None:
        return table
    for field in schema:
        _check_column(table, field)
    return table.select(schema.names)


def read_table(path: str, schema: pa.Schema | None = None) -> pa.Table:
    """Read a Parquet file as a table; raises as `read_bytes` and `parse_table`."""
    return parse_table(read_bytes(path), schema)


def _check_column(table: pa.Table, field: pa.Field) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    count = table.column_names.count(field.name)
    if count != 1:
        has = f"{count} columns" if count else "no column"
        raise DocumentError(f"has {has} {field.name!r}")
    column = table[field.name]
    if column.type != field.type:
        raise DocumentError(f"column {field.name!r} is {column.type}, expected {field.type}")
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


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as Parquet."""
    write_bytes(path, encode_table(table))
