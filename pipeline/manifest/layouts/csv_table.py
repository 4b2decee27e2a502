"""CSV or TSV tables with one row per clip, for any data set that fits no other layout.

Columns: `path` (relative to the table, absolute, or `s3://`) and `labels` (separated by `;` or the
option `separator`); optionally `id` (default: the path; required where a file has several clips),
`split`, `fold`, `start_s` and `end_s`. The option `columns` maps them to the table's names, or to a
pattern of other columns: `path=audio/{fname}.wav`, where `{table}` is the table's own name. A table
without a header has the path in its first column and the labels in its second; `columns` then maps
to numbers. Cells are separated by commas, semicolons, tabs or `|`.

Several tables make one manifest, each with a split before it if it has no column for that:
`dev.csv eval=eval.csv`. A file `labels.txt` beside the first table, one label per line, fixes the
vocabulary and the order of the classes; without it the labels are sorted.
"""

import codecs
import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import note_unlabelled
from pipeline.manifest.files import read_labels
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions, split_and_table
from pipeline.manifest.manifest import Clip, Manifest, from_clips

TABLE = "table"
"""In a pattern, the name of the table without its suffix."""
COLUMNS = ("path", "labels", "id", "split", "fold", "start_s", "end_s")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
_QUOTED = re.compile(r'"[^"]*"')

Rows = list[tuple[int, dict[str, str]]]
"""Cells by column, each row with the number of its line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    rows: Rows
    has_header: bool


def read(source: str, options: SourceOptions) -> Manifest:
    """List the clips of a table.

    Raises:
        UserError: as `read_tables`.
    """
    return read_tables([source], options)


def read_tables(sources: Sequence[str], options: SourceOptions) -> Manifest:
    """List the clips of tables, each a path or `SPLIT=PATH`.

    Raises:
        UserError: `read_rows` raises it, a number is invalid, no clip has a label, or `columns` has
            a name that is not in `COLUMNS`.
    """
    clips: list[Clip] = []
    notes: list[str] = []
    paths = []
    for source in sources:
        split, path = split_and_table(source)
        paths.append(path)
        table = _read_table(path, options.columns)
        if not table.has_header:
            notes.append(
                f"{path} has no header: its columns are called 1, 2, ...; --column path=1 --column "
                "labels=2 unless given otherwise"
            )
        of_table = replace(options, split=split or options.split)
        base = path.rpartition("/")[0]
        clips += [_clip(row, base, of_table, f"{path}, line {n}") for n, row in table.rows]
    path = storage.join(paths[0].rpartition("/")[0], "labels.txt")
    in_use = sorted({label for clip in clips for label in clip.labels})
    vocabulary = read_labels(path) if storage.exists(path) else in_use
    return note_unlabelled(from_clips(clips, vocabulary, notes), ", ".join(paths))


def read_rows(path: str, *, required: Sequence[str]) -> Rows:
    """The rows of a table, blanks trimmed, each with its line number.

    Raises:
        UserError: no such file, not text, a quote is left open, a required column is missing, two
            have the same name, or a row has more or fewer cells than the header.
    """
    text = _read_text(path)
    delimiter = _delimiter(text, path)
    records = _records(text, delimiter, path)
    _, columns = next(records, (1, []))
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(
            path, f"no column {', '.join(missing)}", f"it has {', '.join(columns) or 'none'}"
        )
    repeated = next((name for name in columns if name and columns.count(name) > 1), None)
    if repeated:
        raise UserError(path, f"two columns are called {repeated!r}", "keep or rename one")
    return _rows(records, columns, path, delimiter)


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


def _rows(
    records: Iterator[tuple[int, list[str]]], columns: Sequence[str], path: str, delimiter: str
) -> Rows:
    rows = []
    for line, cells in records:
        if len(cells) != len(columns):
            raise UserError(
                f"{path}, line {line}",
                f"{len(cells)} cells, but the first row has {len(columns)}",
                f"put cells that contain {delimiter!r} in double quotes",
            )
        rows.append((line, dict(zip(columns, cells, strict=True))))
    return rows


def _read_text(path: str) -> str:
    try:
        data = storage.read_bytes(path)
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(path, "no such file") from error
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 text ({error.reason})") from error


def _delimiter(text: str, path: str) -> str:
    """What separates the cells: that of which the first line has most outside quotes."""
    if path.endswith(".tsv"):
        return "\t"
    lines = (line for line in text.splitlines() if line.strip())
    bare = _QUOTED.sub("", next(lines, ""))
    return max(",\t;|", key=bare.count)


def _read_table(path: str, columns: Mapping[str, str]) -> _Table:
    """The rows, their columns renamed or made from patterns by `columns`."""
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise UserError(
            f"--column {unknown[0]}=...", f"unknown column; known are {', '.join(COLUMNS)}"
        )
    text = _read_text(path)
    delimiter = _delimiter(text, path)
    first = next(_records(text, delimiter, path), (1, []))[1]
    has_header = not _is_clip(first, columns)
    names = {"path": "path", "labels": "labels"} if has_header else {"path": "1", "labels": "2"}
    patterns = {
        name: column if _IN_BRACES.search(column) else f"{{{column}}}"
        for name, column in {**names, **columns}.items()
    }
    used = {used for pattern in patterns.values() for used in _IN_BRACES.findall(pattern)}
    used -= {TABLE}
    if has_header:
        rows = read_rows(path, required=sorted(used))
    else:
        numbers = [str(number) for number in range(1, len(first) + 1)]
        missing = sorted(used - set(numbers))
        if missing:
            raise UserError(path, f"no column {', '.join(missing)}", f"it has {len(first)} columns")
        rows = _rows(_records(text, delimiter, path), numbers, path, delimiter)
    table = PurePosixPath(path).stem
    named = []
    for line, row in rows:
        cells = {TABLE: table, **row}
        named.append((line, {**row, **{name: _filled(p, cells) for name, p in patterns.items()}}))
    return _Table(rows=named, has_header=has_header)


def _is_clip(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Whether the first row of a table is a clip and no header."""
    wanted = {used for text in columns.values() for used in _IN_BRACES.findall(text) or [text]}
    if wanted and all(name.isdecimal() for name in wanted):
        return not wanted <= set(cells)
    if (wanted | {"path", "labels"}) & set(cells):
        return False
    has_audio = any(PurePosixPath(cell).suffix.lower() in AUDIO_SUFFIXES for cell in cells)
    return len(cells) > 1 and has_audio


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
