"""A CSV or TSV table with one row per clip, for any data set that fits no other layout.

Columns: `path` (relative to the table, absolute, or `s3://`) and `labels` (separated by `;` or the
option `separator`); optionally `id` (default: the path; required where a file has several clips),
`split`, `fold`, `start_s` and `end_s`. The option `columns` maps them to the table's names, or to a
pattern of other columns: `path=audio/{fname}.wav`. A file `labels.txt` beside the table, one label
per line, fixes the vocabulary and the order of the classes; without it the labels are sorted.
"""

import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import note_unlabelled
from pipeline.manifest.files import read_labels
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Clip, Manifest, from_clips

COLUMNS = ("path", "labels", "id", "split", "fold", "start_s", "end_s")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")


def read(source: str, options: SourceOptions) -> Manifest:
    """List the clips of a table.

    Raises:
        UserError: `read_rows` raises it, a number is invalid, no clip has a label, or `columns` has
            a name that is not in `COLUMNS`.
    """
    base = source.rpartition("/")[0]
    clips = [
        _clip(row, base, options, f"{source}, line {line}")
        for line, row in _named_rows(source, options.columns)
    ]
    path = storage.join(base, "labels.txt")
    in_use = sorted({label for clip in clips for label in clip.labels})
    vocabulary = read_labels(path) if storage.exists(path) else in_use
    return note_unlabelled(from_clips(clips, vocabulary), source)


def read_rows(path: str, *, required: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV (or, by its suffix, TSV) file, blanks trimmed, each with its line number.

    Raises:
        UserError: no such file, not text, a quote is left open, a required column is missing, two
            have the same name, or a row has more or fewer cells than the header.
    """
    try:
        text = storage.read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(path, "no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 text ({error.reason})") from error
    delimiter = "\t" if path.endswith(".tsv") else ","
    records = _records(text, delimiter, path)
    _, columns = next(records, (1, []))
    missing = [name for name in required if name not in columns]
    if missing:
        other = next((sign for sign in ",;\t|" if len(columns) == 1 and sign in columns[0]), None)
        hint = f"; are cells separated by {other!r}? Write them with {delimiter!r}" if other else ""
        raise UserError(
            path, f"no column {', '.join(missing)}", f"it has {', '.join(columns) or 'none'}{hint}"
        )
    repeated = next((name for name in columns if name and columns.count(name) > 1), None)
    if repeated:
        raise UserError(path, f"two columns are called {repeated!r}", "keep or rename one")
    rows = []
    for line, cells in records:
        if len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line}",
                f"{len(cells)} cells, but the header has {len(columns)}",
                f"put cells that contain {delimiter!r} in double quotes",
            )
        rows.append((line, dict(zip(columns, cells, strict=True))))
    return rows


def resolve(path: str, base: str) -> str:
    """A path from a table in the folder `base`, made absolute."""
    if path.startswith("/") or "://" in path:
        return path
    scheme, sign, folder = base.rpartition("://")
    return scheme + sign + posixpath.normpath(f"{folder}/{path}")


def _records(text: str, delimiter: str, path: str) -> Iterator[tuple[int, list[str]]]:
    """Records that are not blank, as trimmed cells, each with the number of its first line."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for cells in reader:
            trimmed = [cell.strip() for cell in cells]
            if trimmed not in ([], [""]):
                yield line, trimmed
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}",
            str(error),
            "is a quote left open, or not doubled in a quoted cell?",
        ) from error


def _named_rows(path: str, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, their columns renamed or made from patterns by `columns`."""
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise UserError(
            f"--column {unknown[0]}=...", f"unknown column; known are {', '.join(COLUMNS)}"
        )
    patterns = {
        name: column if _IN_BRACES.search(column) else f"{{{column}}}"
        for name, column in {"path": "path", "labels": "labels", **columns}.items()
    }
    used = sorted({used for pattern in patterns.values() for used in _IN_BRACES.findall(pattern)})
    for line, row in read_rows(path, required=used):
        yield line, {**row, **{name: _filled(text, row) for name, text in patterns.items()}}


def _filled(pattern: str, row: Mapping[str, str]) -> str:
    return _IN_BRACES.sub(lambda match: row[match[1]], pattern)


def _clip(row: dict[str, str], base: str, options: SourceOptions, where: str) -> Clip:
    path = row["path"]
    if not path:
        raise UserError(where, "the path is empty")
    try:
        return Clip(
            id=row.get("id") or path,
            uri=resolve(path, base),
            labels=tuple(
                part.strip() for part in row["labels"].split(options.separator) if part.strip()
            ),
            split=row.get("split") or options.split,
            # Programs that store a column with empty cells as floats write 1.0.
            fold=int(row.get("fold", "").removesuffix(".0") or 0),
            start_s=float(row["start_s"]) if row.get("start_s") else None,
            end_s=float(row["end_s"]) if row.get("end_s") else None,
        )
    except ValueError as error:
        raise UserError(where, f"fold, start_s and end_s must be numbers ({error})") from error
