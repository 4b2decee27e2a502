"""JSON documents and Parquet tables, read and written as a whole.

PyArrow is loaded where a table is read or written: `--help` need not wait for it.
"""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.storage.files import read_bytes, write_bytes

if TYPE_CHECKING:
    import pyarrow as pa


def read_json(path: str) -> Any:
    """A JSON document."""
    return json.loads(read_bytes(path))


def read_json_object(path: str) -> dict[str, Any]:
    """A JSON document of keys, as a user may have changed it or cut it short.

    Raises:
        UserError: it is none.
    """
    try:
        document = read_json(path)
    except ValueError as error:
        raise UserError(path, f"no whole JSON document ({error})", "restore it") from error
    if not isinstance(document, dict):
        raise UserError(path, f"must hold a JSON object, got {type(document).__name__}")
    return document


def write_json(path: str, document: object) -> None:
    """Write a JSON document, keys in the order given; NaN is an error, not a word in the file."""
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
