"""A CSV or TSV table with one row a clip, for any data set that fits no other layout.

Columns: `path` (relative to the table, absolute, or `s3://`) and `labels` (separated by `;` or the
option `separator`); optionally `id` (the path without it), `split`, `fold`, `start_s` and `end_s`.
The option `columns` says what a table calls them, or how to make one of others:
`path=audio/{fname}.wav`. A file `labels.txt` beside the table, one label a line, fixes the
vocabulary and the order of the classes; without it the labels are sorted.
"""

import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest import Clip, Manifest, from_clips, read_labels
from pipeline.sources.options import SourceOptions

COLUMNS = ("path", "labels", "id", "split", "fold", "start_s", "end_s")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")


def read(source: str, options: SourceOptions) -> Manifest:
    """List the clips of a table.

    Raises:
        UserError: the table is missing, lacks a column, or a number in it is none; `columns` has
            a name that is not in `COLUMNS`.
    """
    base = source.rpartition("/")[0]
    clips = [
        _clip(row, base, options, f"{source}, row {number}")
        for number, row in enumerate(_named_rows(source, options.columns), start=2)
    ]
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


def resolve(path: str, base: str) -> str:
    """A path as a table in the folder `base` means it."""
    if path.startswith("/") or "://" in path:
        return path
    scheme, sign, folder = base.rpartition("://")
    return scheme + sign + posixpath.normpath(f"{folder}/{path}")


def _named_rows(path: str, columns: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The rows, their columns renamed or made as `columns` says."""
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise UserError(f"--column {unknown[0]}=...: there are only {', '.join(COLUMNS)}")
    patterns = {
        name: column if _IN_BRACES.search(column) else f"{{{column}}}"
        for name, column in {"path": "path", "labels": "labels", **columns}.items()
    }
    used = sorted({used for pattern in patterns.values() for used in _IN_BRACES.findall(pattern)})
    for row in read_rows(path, required=used):
        yield {**row, **{name: _filled(pattern, row) for name, pattern in patterns.items()}}


def _filled(pattern: str, row: Mapping[str, str]) -> str:
    return _IN_BRACES.sub(lambda match: row[match[1]], pattern)


def _clip(row: dict[str, str], base: str, options: SourceOptions, where: str) -> Clip:
    path = row["path"]
    if not path:
        raise UserError(f"{where}: the path is empty")
    try:
        return Clip(
            id=row.get("id") or path,
            uri=resolve(path, base),
            labels=tuple(
                part.strip() for part in row["labels"].split(options.separator) if part.strip()
            ),
            split=row.get("split") or options.split,
            fold=int(row.get("fold") or 0),
            start_s=float(row["start_s"]) if row.get("start_s") else None,
            end_s=float(row["end_s"]) if row.get("end_s") else None,
        )
    except ValueError as error:
        raise UserError(f"{where}: fold, start_s and end_s must be numbers ({error})") from error
