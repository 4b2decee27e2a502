"""A CSV or TSV table with one row a clip, for any data set that fits no other layout.

Columns: `path` (relative to the table, absolute, or `s3://`) and `labels` (separated by `;`);
optionally `id` (the path without it), `split`, `fold`, `start_s` and `end_s`. A file `labels.txt`
beside the table, one label a line, fixes the vocabulary and the order of the classes; without it
the labels are sorted.
"""

import csv
import io
from collections.abc import Sequence

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest import TRAIN_SPLIT, Clip, Manifest, from_clips, read_labels
from pipeline.sources.options import SourceOptions


def read(source: str, options: SourceOptions) -> Manifest:
    """List the clips of a table.

    Raises:
        UserError: the table is missing, lacks a column, or a number in it is none.
    """
    rows = read_rows(source, required=("path", "labels"))
    base = source.rpartition("/")[0]
    clips = [_clip(row, base, f"{source}, row {i}") for i, row in enumerate(rows, start=2)]
    vocabulary = storage.join(base, "labels.txt")
    if storage.exists(vocabulary):
        return from_clips(clips, read_labels(vocabulary))
    return from_clips(clips, sorted({label for clip in clips for label in clip.labels}))


def read_rows(path: str, *, required: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV (or, by its name, TSV) file as dictionaries, blanks trimmed.

    Raises:
        UserError: no such file, not text, or a required column is missing.
    """
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason})") from error
    delimiter = "\t" if path.endswith(".tsv") else ","
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    try:
        columns, rows = reader.fieldnames or [], list(reader)
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; is a quote left open?"
        ) from error
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(columns) or 'none'}"
        )
    return [{key: (value or "").strip() for key, value in row.items() if key} for row in rows]


def _clip(row: dict[str, str], base: str, where: str) -> Clip:
    path = row["path"]
    if not path:
        raise UserError(f"{where}: the path is empty")
    try:
        return Clip(
            id=row.get("id") or path,
            uri=path if path.startswith("/") or "://" in path else storage.join(base, path),
            labels=tuple(part.strip() for part in row["labels"].split(";") if part.strip()),
            split=row.get("split") or TRAIN_SPLIT,
            fold=int(row.get("fold") or 0),
            start_s=float(row["start_s"]) if row.get("start_s") else None,
            end_s=float(row["end_s"]) if row.get("end_s") else None,
        )
    except ValueError as error:
        raise UserError(f"{where}: fold, start_s and end_s must be numbers ({error})") from error
