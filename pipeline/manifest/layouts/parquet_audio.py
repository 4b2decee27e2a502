"""The audio in Parquet files: which column it is, and the bytes in some rows of a row group."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import UserError


class NoAudioColumnError(UserError):
    """A Parquet file has no unambiguous audio column."""


def audio_column(schema: pa.Schema) -> str:
    """The dotted path of the audio column: `audio` if it holds bytes, else the only one that does.

    Raises:
        UserError: there is none, or several others.
    """
    columns = {path.partition(".")[0]: path for path in map(_binary_path, schema) if path}
    if "audio" in columns:
        return columns["audio"]
    if len(columns) != 1:
        raise NoAudioColumnError(
            "",
            f"{len(columns)} columns could be the audio, among {', '.join(schema.names)}",
            "call the right one 'audio'",
        )
    return columns.popitem()[1]


def read_audio(file: Any, row_group: int, rows: Sequence[int]) -> list[bytes | None]:
    """The audio in rows of a row group, all by one read; None where a row has none.

    Args:
        file: a seekable binary file, or an open `ParquetFile`.
        row_group: its index in the file.
        rows: indices of rows within the row group.

    Raises:
        UserError: there is no audio column.
        ArrowInvalid: the file is damaged or has no such row group.
        EOFError: the row group has no such row.
    """
    try:
        parquet = file if isinstance(file, pq.ParquetFile) else pq.ParquetFile(file)
        column, _, child = (path := audio_column(parquet.schema_arrow)).partition(".")
        content = parquet.read_row_group(row_group, columns=[path], use_threads=False)[column]
    except OSError as error:
        if is_damage(error):
            raise pa.ArrowInvalid(str(error)) from error
        raise
    if max(rows, default=-1) >= len(content):
        raise EOFError(f"row group {row_group} has {len(content)} rows, not row {max(rows)}")
    if child:
        content = pc.struct_field(content, child)
    return [content[row].as_py() for row in rows]


def is_damage(error: Exception) -> bool:
    """Whether an error means that a Parquet file is damaged, rather than that reading failed."""
    # Arrow raises bare OSErrors for broken pages; system errors have an errno or a subclass.
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and not error.errno)


def _binary_path(field: pa.Field) -> str | None:
    """The path to a column's bytes; None if it has none."""
    if pa.types.is_struct(field.type):
        names = [child.name for child in field.type if _is_binary(child.type)]
        return f"{field.name}.bytes" if "bytes" in names else None
    return field.name if _is_binary(field.type) else None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
