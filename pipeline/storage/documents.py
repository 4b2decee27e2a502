"""JSON documents and Parquet tables, read and written as a whole.

A document that this program writes is a dataclass; pydantic checks it when it is read.
PyArrow and pydantic are loaded where they are used: `--help` need not wait for them.
"""

from __future__ import annotations

import io
import json
import reprlib
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.errors import UserError
from pipeline.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import TypeAdapter, ValidationError

Document = TypeVar("Document")

_NUM_FAULTS_SHOWN = 3

_adapters: dict[type[Any], TypeAdapter[Any]] = {}


class DocumentError(ValueError):
    """A document that is not JSON, or whose keys or values do not match its class."""


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
        raise DocumentError(f"not a whole JSON document ({error})") from error
    return document


def conform(value: object, kind: type[Document]) -> Document:
    """A dataclass from dictionaries and lists, such as those of a checkpoint.

    Raises:
        DocumentError: names the path of each invalid key.
    """
    from pydantic import ValidationError

    try:
        document: Document = _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise DocumentError(_faults(error)) from error
    return document


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
        what = fault["msg"]
        if fault["type"] == "value_error":
            # What `__post_init__` raises says which field it is about, and its value.
            what = what.removeprefix("Value error, ")
        elif fault["type"] != "missing":
            what += f", got {reprlib.repr(fault['input'])}"
        shown.append(f"{path}: {what}" if path else what)
    more = len(faults) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")


def read_json(path: str) -> Any:
    """A JSON document."""
    return json.loads(read_bytes(path))


def write_json(path: str, document: object) -> None:
    """Write a JSON document, keys in the given order. Raises ValueError for NaN."""
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(read_bytes(path)), columns=columns)


def encode_table(table: pa.Table, rows_per_group: int | None = None) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=rows_per_group)
    return buffer.getvalue()


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as Parquet."""
    write_bytes(path, encode_table(table))
