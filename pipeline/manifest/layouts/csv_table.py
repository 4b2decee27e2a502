"""CSV or TSV tables with one row per clip, for any data set that fits no other layout.

Columns: `path` (relative to the table, absolute, or in a bucket) and `labels` (separated by `;` or
the option `separator`); optionally `id` (default: the path; required where a file has several
clips), `split`, `fold`, `start_s` and `end_s`. The option `columns` maps them to the table's names,
or to a pattern of other columns: `path=audio/{fname}.wav`, where `{table}` is its own name. A table
without a header has the path in its first column and the labels in its second; `columns` then maps
to numbers. Cells are separated by commas, semicolons, tabs or `|`. Our names for columns may be in
any case; a path may start with `~`, and `\\` in it is `/` unless it is absolute.

Several tables make one manifest, each with a split before it if it has no column for that:
`dev.csv eval=eval.csv`. A file `labels.txt` beside the first table, one label per line, fixes the
vocabulary and the order of the classes; without it the labels are sorted.
"""

import csv
import io
import math
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import note_unlabelled
from pipeline.manifest.files import read_labels
from pipeline.manifest.groups import is_likely_group
from pipeline.manifest.layouts.column_names import did_you_mean, how_to_name, in_our_case
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions, split_and_path
from pipeline.manifest.manifest import Clip, Manifest, from_clips, with_groups
from pipeline.manifest.splits import check_split
from pipeline.manifest.text_files import read_text
from pipeline.terminal.units import counted

TABLE = "table"
"""In a pattern, the name of the table without its suffix."""
_GROUP = "group of clips"
"""Stands among our columns for that of the option `group`; no table has it."""
COLUMNS = ("path", "labels", "id", "split", "fold", "start_s", "end_s")
_IN_BRACES = re.compile(r"\{([^{}]*)\}")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\")
_MAX_FOLD = 2**31 - 1
_EXCELS_SIGN = "sep="
"""Excel writes `sep=;` before the header."""
_QUOTED = re.compile(r'"[^"]*"')

_NO_OPTIONS: Mapping[str, str] = {}

Rows = list[tuple[int, dict[str, str]]]
"""Cells by column, each row with the number of its line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    rows: Rows
    has_header: bool
    has_split: bool
    groups: dict[str, list[str | None]]
    """Values of the column that clips belong together by, or of those whose names say so."""


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
    groups: dict[str, list[str | None]] = {}
    paths = []
    for source in sources:
        split, path = split_and_path(source)
        paths.append(path)
        table = _read_table(path, options)
        if not table.has_header:
            notes.append(
                f"{path} has no header: its columns are called 1, 2, ...; --column path=1 --column "
                "labels=2 unless given otherwise"
            )
        if not table.rows:
            raise UserError(path, "has no rows below its header", "list the clips in it")
        of_table = replace(options, split=options.split if split is None else split)
        if len(sources) > 1 and split is None and not table.has_split:
            raise UserError(
                path,
                "it has no column split, and there are several tables",
                f"write its split before it, such as eval={path}",
            )
        for name in {*groups, *table.groups}:
            values = groups.setdefault(name, [None] * len(clips))
            values += table.groups.get(name, [None] * len(table.rows))
        base = path.rpartition("/")[0]
        clips += [_clip(row, base, of_table, f"{path}, line {n}") for n, row in table.rows]
    path = storage.join(paths[0].rpartition("/")[0], "labels.txt")
    in_use = sorted({label for clip in clips for label in clip.labels})
    vocabulary = read_labels(path) if storage.exists(path) else in_use
    notes += _note_leaks(clips)
    manifest = note_unlabelled(from_clips(clips, vocabulary, notes), ", ".join(paths))
    return with_groups(manifest, options.group, groups)


def read_rows(
    path: str, *, required: Sequence[str], options: Mapping[str, str] = _NO_OPTIONS
) -> Rows:
    """The rows of a table, blanks trimmed, each with its line number.

    Args:
        path: of the table.
        required: columns that it must have.
        options: the option by which a required column was asked for, for the message.

    Raises:
        UserError: no such file, not text, a quote is left open, a required column is missing, two
            have the same name, or a row has more or fewer cells than the header.
    """
    text = read_text(path)
    delimiter = _delimiter(text, path)
    records = _records(text, delimiter, path)
    _, columns = next(records, (1, []))
    columns = in_our_case(columns, (*required, *COLUMNS))
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(
            path,
            f"no column {', '.join(missing)}",
            how_to_name(missing, columns, options),
        )
    repeated = next((name for name in columns if name and columns.count(name) > 1), None)
    if repeated:
        raise UserError(path, f"two columns are called {repeated!r}", "keep or rename one")
    return _rows(records, columns, path, delimiter)


def resolve(path: str, base: str) -> str:
    """A path from a table in the folder `base`, made absolute; `\\` separates folders, too."""
    if path.startswith("/") or "://" in path:
        return path
    path = path.replace("\\", "/")
    if path.startswith("~/"):
        return str(Path(path).expanduser())
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
            if trimmed not in ([], [""]) and trimmed[0] != _EXCELS_SIGN:
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


def _delimiter(text: str, path: str) -> str:
    """What separates the cells: that which sets a known column or a path apart, or else that of
    which the first line has most outside quotes."""
    if path.lower().endswith(".tsv"):
        return "\t"
    lines = (line for line in text.splitlines() if line.strip())
    bare = _QUOTED.sub("", next(lines, ""))
    if bare.startswith(_EXCELS_SIGN) and bare != _EXCELS_SIGN:
        return bare[len(_EXCELS_SIGN)]
    signs = [sign for sign in ",\t;|" if any(map(_is_known, bare.split(sign)[:-1]))]
    return max(signs or ",\t;|", key=bare.count)


def _is_known(cell: str) -> bool:
    """Whether a cell of the first row is the name of a column or a path."""
    return cell.strip().lower() in COLUMNS or _is_path(cell)


def _is_path(cell: str) -> bool:
    return PurePosixPath(cell.strip()).suffix.lower() in AUDIO_SUFFIXES


def _read_table(path: str, options: SourceOptions) -> _Table:
    """The rows, their columns renamed or made from patterns by the options."""
    columns = options.columns
    unknown = sorted(columns.keys() - set(COLUMNS))
    if unknown:
        raise UserError(
            f"--column {unknown[0]}=...",
            f"there is no column {unknown[0]!r}",
            did_you_mean(unknown[0], COLUMNS),
        )
    text = read_text(path)
    delimiter = _delimiter(text, path)
    first = next(_records(text, delimiter, path), (1, []))[1]
    group = {_GROUP: options.group} if options.group else {}
    has_header = not _is_clip(first, {**columns, **group})
    names = {"path": "path", "labels": "labels"} if has_header else {"path": "1", "labels": "2"}
    patterns = {
        name: column if _IN_BRACES.search(column) else f"{{{column}}}"
        for name, column in {**names, **columns, **group}.items()
    }
    asked_by = {
        used: f"--column {name}={pattern}" if name != _GROUP else f"--group {pattern}"
        for name, pattern in patterns.items()
        for used in _IN_BRACES.findall(pattern)
        if used != TABLE
    }
    if has_header:
        rows = read_rows(path, required=sorted(asked_by), options=asked_by)
    else:
        numbers = [str(number) for number in range(1, len(first) + 1)]
        missing = sorted(asked_by.keys() - set(numbers))
        if missing:
            has = f"it has {counted(len(first), 'column')}"
            raise UserError(path, f"no column {', '.join(missing)}", has)
        rows = _rows(_records(text, delimiter, path), numbers, path, delimiter)
    return _with_our_columns(rows, patterns, path, options.group, has_header=has_header)


def _with_our_columns(
    rows: Rows, patterns: dict[str, str], path: str, group: str, *, has_header: bool
) -> _Table:
    """The rows with our columns, made from patterns, and their groups."""
    table = {TABLE: PurePosixPath(path).stem}
    group_pattern = patterns.pop(_GROUP, None)
    if group_pattern is None:
        groups = _likely_groups(rows, patterns["path"])
    else:
        groups = {group: [_filled(group_pattern, {**table, **row}) for _, row in rows]}
    named = []
    for line, row in rows:
        cells = {**table, **row}
        named.append((line, {**row, **{name: _filled(p, cells) for name, p in patterns.items()}}))
    has_split = bool(named) and all(row.get("split") for _, row in named)
    return _Table(rows=named, has_header=has_header, has_split=has_split, groups=groups)


def _likely_groups(rows: Rows, path: str) -> dict[str, list[str | None]]:
    """The columns by which clips seem to belong together; one is the path, where a file has
    several clips."""
    in_path = [name for name in _IN_BRACES.findall(path) if path == f"{{{name}}}"]
    columns = rows[0][1] if rows else {}
    return {
        name: [row[name] for _, row in rows]
        for name in columns
        if name in in_path or (name not in COLUMNS and is_likely_group(name))
    }


def _is_clip(cells: Sequence[str], columns: Mapping[str, str]) -> bool:
    """Whether the first row of a table is a clip and no header."""
    wanted = {used for text in columns.values() for used in _IN_BRACES.findall(text) or [text]}
    if wanted and all(name.isdecimal() for name in wanted):
        return not wanted <= set(cells)
    if (wanted | {"path", "labels"}) & {*cells, *(cell.lower() for cell in cells)}:
        return False
    return len(cells) > 1 and any(map(_is_path, cells))


def _filled(pattern: str, row: Mapping[str, str]) -> str:
    return _IN_BRACES.sub(lambda match: row[match[1]], pattern)


def _clip(row: dict[str, str], base: str, options: SourceOptions, where: str) -> Clip:
    path = row["path"]
    if not path:
        raise UserError(where, "the path is empty")
    if _DRIVE.match(path):
        raise UserError(
            where, f"{path!r} is on a drive of Windows", "give paths relative to the table"
        )
    if not path.isprintable():
        raise UserError(where, f"the path {path!r} has control characters")
    try:
        clip = Clip(
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
    check_split(clip.split, where)
    if not 0 <= clip.fold <= _MAX_FOLD:
        raise UserError(where, f"fold is {clip.fold}, expected 0 to {_MAX_FOLD}")
    start_s, end_s = clip.start_s or 0.0, math.inf if clip.end_s is None else clip.end_s
    if not 0 <= start_s < end_s or clip.end_s == math.inf:
        raise UserError(
            where, f"start_s is {start_s}, end_s {end_s}; expected 0 <= start_s < end_s"
        )
    return clip


def _note_leaks(clips: Sequence[Clip]) -> list[str]:
    """A note on audio that is in several splits."""
    split_of: dict[tuple[str, float | None, float | None], str] = {}
    leaks = [
        clip.uri
        for clip in clips
        if split_of.setdefault((clip.uri, clip.start_s, clip.end_s), clip.split) != clip.split
    ]
    if not leaks:
        return []
    are = counted(len(leaks), "clip is", "clips are")
    return [f"{are} in another split, too, such as {leaks[0]}"]
