"""Shared by data sets in container files: finding the files, naming their fields, and making a
manifest of their rows.

A row is a clip: its location in a container, with its labels and other metadata.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import note_unlabelled
from pipeline.manifest.groups import is_likely_group
from pipeline.manifest.layouts.column_names import did_you_mean
from pipeline.manifest.layouts.listing import LISTING_SCHEMA
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.segments import read_vocabulary
from pipeline.manifest.layouts.visible import VisibleFiles
from pipeline.manifest.manifest import SCHEMA, Manifest, from_columns, with_groups
from pipeline.manifest.splits import SPLITS
from pipeline.terminal.units import counted

ROW_SCHEMA = pa.schema(
    [
        *LISTING_SCHEMA,
        pa.field("fold", pa.int32()),
        pa.field("group", pa.string()),  # by the option `group`, or else by a likely column
        pa.field("group_name", pa.string()),  # that column; null: by the option
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
    ]
)
FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("video_id", "id"),
    "labels": ("labels", "label", "tags", "tag", "human_labels"),
    "split": ("split",),
    "fold": ("fold",),
    "start_s": ("start_s",),
    "end_s": ("end_s",),
}
"""Metadata of a clip, and the names it may have; the first that is present counts."""
THREADS = 16
"""Containers listed at once."""
_CONTAINERS_AHEAD = 128
"""Containers of which the rows may wait in memory."""

Problems = Counter[str]
"""Problems in a container, and how often each occurred."""
ListContainer = Callable[[str, str, Mapping[str, tuple[str, ...]]], tuple[pa.Table, Problems]]
"""Lists a container: path, name relative to the source, fields in; a table of `ROW_SCHEMA` out."""

_SPLITS = {
    **SPLITS,
    **dict.fromkeys(("bal_train", "balanced_train"), "balanced"),
    **dict.fromkeys(("unbal_train", "unbalanced_train"), "unbalanced"),
}
_SPLIT = re.compile(
    rf"({'|'.join(_SPLITS)})(_segments)?(_mp3)?([-_.]?(part)?[0-9].*)?", re.IGNORECASE
)


def list_rows(
    paths: Sequence[str],
    location: str,
    list_container: ListContainer,
    fields: Mapping[str, tuple[str, ...]] = FIELDS,
) -> tuple[pa.Table, list[str]]:
    """The rows of several containers, in order, and notes on problems in them."""
    problems: list[Problems] = []
    tables = list(iter_rows(paths, location, list_container, problems, fields))
    return pa.concat_tables([ROW_SCHEMA.empty_table(), *tables]), note_problems(paths, problems)


def iter_rows(
    paths: Sequence[str],
    location: str,
    list_container: ListContainer,
    problems: list[Problems],
    fields: Mapping[str, tuple[str, ...]] = FIELDS,
) -> Iterator[pa.Table]:
    """The rows of each container, in order; the problems of each are appended to `problems`."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        for start in range(0, len(paths), _CONTAINERS_AHEAD):
            some = paths[start : start + _CONTAINERS_AHEAD]
            names = [_below(location, path) for path in some]
            listed = pool.map(partial(_list_container, list_container, fields), some, names)
            for table, found in listed:
                problems.append(found)
                yield table


def note_problems(paths: Sequence[str], problems: Sequence[Problems]) -> list[str]:
    """Notes on the problems of each container."""
    files_by_reason: dict[str, list[str]] = {}
    for path, found in zip(paths, problems, strict=True):
        for reason in found:
            files_by_reason.setdefault(reason, []).append(path)
    return [
        f"{reason} ({sum(found[reason] for found in problems)} in "
        f"{counted(len(files), 'file')}, such as {files[0]})"
        for reason, files in files_by_reason.items()
    ]


def read_containers(
    source: str, suffixes: tuple[str, ...], list_container: ListContainer, options: SourceOptions
) -> Manifest:
    """The manifest of all containers below a folder, or of one container.

    Raises:
        UserError: there are no containers, none holds a clip, a label is not in `class_labels`, or
            the containers have labels and all are empty.
    """
    is_one = source.lower().endswith(suffixes)
    listed = VisibleFiles(source)
    paths = [source] if is_one else _with_suffix(listed.paths(), suffixes)
    kinds = " or ".join(suffixes)
    if not paths:
        raise UserError(source, f"has no {kinds} file")
    rows, notes = list_rows(paths, source, list_container, _field_names(options))
    notes += listed.notes()
    if not rows.num_rows:
        more = [f"and {len(notes) - 3} more"] if len(notes) > 3 else []
        why = "; ".join([*notes[:3], *more])
        raise UserError(source, f"no clip in {counted(len(paths), f'{kinds} file')}", why)
    _check_present(rows, source, options)
    ids = rows["name"]
    if pc.count_distinct(ids).as_py() < len(ids):
        notes.append("ids start with their file's name: without it some are equal")
        files = [_below(source, path) for path in rows["uri"].to_pylist()]
        ids = pc.binary_join_element_wise(pa.array(files), ids, "/")
    labels, vocabulary = _labels(rows, options)
    columns = {
        **{name: rows[name] for name in SCHEMA.names if name in ROW_SCHEMA.names},
        "id": ids,
        "labels": labels,
        "split": pc.fill_null(rows["split"], options.split),
        "fold": pc.fill_null(rows["fold"], 0),
    }
    has_labels = rows["labels"].null_count < rows.num_rows
    manifest = from_columns(columns, vocabulary, notes)
    groups = {options.group: rows["group"]} if options.group else _likely_groups(rows)
    manifest = with_groups(manifest, options.group, groups)
    return note_unlabelled(manifest, source, required=has_labels)


def split_of(name: str) -> str | None:
    """The split named by a file or the nearest folder above it: `data/bal_train/00.parquet`,
    `test-00000-of-00002.parquet`, `x/eval_07.tar`, `eval_segments_mp3.hdf`; None if none
    names a split."""
    for part in reversed(name.rpartition(".")[0].split("/")):
        match = _SPLIT.fullmatch(part)
        if match:
            return _SPLITS[match[1].lower()]
    return None


def choose_fields(present: Sequence[str], fields: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Our name of a field -> its name in the container, for the fields that are present."""
    chosen = {
        ours: next((name for name in names if name in present), None)
        for ours, names in fields.items()
    }
    return {ours: name for ours, name in chosen.items() if name}


def likely_group(
    present: Sequence[str], fields: Mapping[str, tuple[str, ...]], chosen: Mapping[str, str]
) -> str | None:
    """The first field by which clips seem to belong together, unless the user named one."""
    if "group" in fields:
        return None
    return next((n for n in present if n not in chosen.values() and is_likely_group(n)), None)


def label_list(value: object) -> list[str] | None:
    """Labels from a list, or from a text that separates them by `;`; None if unknown."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else str(value).split(";")
    return [text for part in parts if part is not None and (text := str(part).strip())]


def _list_container(
    list_container: ListContainer, fields: Mapping[str, tuple[str, ...]], path: str, name: str
) -> tuple[pa.Table, Problems]:
    try:
        rows: tuple[pa.Table, Problems] = storage.with_retries(list_container, path, name, fields)
        return rows
    except Exception as error:
        fault = storage.one_file_fault(error)
        reason = (fault, "") if fault else storage.explain(error)
        if reason is None:
            raise
        raise UserError(path, *reason) from error


def _with_suffix(paths: Sequence[str], suffixes: tuple[str, ...]) -> list[str]:
    return [path for path in paths if path.lower().endswith(suffixes)]


def _below(location: str, path: str) -> str:
    """A container's path relative to the location, which may be that container."""
    folder = location.rpartition("/")[0] if path == location else location.rstrip("/")
    return path.removeprefix(f"{folder}/")


def _field_names(options: SourceOptions) -> dict[str, tuple[str, ...]]:
    unknown = sorted(options.columns.keys() - FIELDS.keys())
    if unknown:
        raise UserError(
            f"--column {unknown[0]}=...",
            f"there is no column {unknown[0]!r}",
            did_you_mean(unknown[0], list(FIELDS)),
        )
    given = {ours: (theirs,) for ours, theirs in options.columns.items()}
    # Human-readable names are better labels than ids, unless a list translates the ids.
    labels = FIELDS["labels"] if options.class_labels else ("human_labels", *FIELDS["labels"])
    group = {"group": (options.group,)} if options.group else {}
    return {**FIELDS, "labels": labels, **given, **group}


def _likely_groups(rows: pa.Table) -> dict[str, pa.ChunkedArray]:
    """The values of each column that some container has, and that clips may belong together by."""
    return {
        name: pc.if_else(pc.equal(rows["group_name"], name), rows["group"], None)
        for name in pc.unique(rows["group_name"]).drop_null().to_pylist()
    }


def _check_present(rows: pa.Table, source: str, options: SourceOptions) -> None:
    """Refuse names of fields that no container has."""
    flags = {ours: f"--column {ours}={theirs}" for ours, theirs in options.columns.items()}
    names = dict(options.columns)
    if options.group:
        flags["group"], names["group"] = f"--group {options.group}", options.group
    for ours, theirs in names.items():
        if ours != "id" and rows[ours].null_count == rows.num_rows:
            raise UserError(flags[ours], f"{source} has no {theirs}")


def _labels(rows: pa.Table, options: SourceOptions) -> tuple[list[list[str]], list[str]]:
    """Labels of each row, and the vocabulary."""
    labels: list[list[str]] = [row_labels or [] for row_labels in rows["labels"].to_pylist()]
    used = {label for row_labels in labels for label in row_labels}
    if options.class_labels is None:
        return labels, sorted(used)
    names = read_vocabulary(options.class_labels)
    # Numbers of classes first: they count only where nothing is called so.
    numbers = {str(number): name for number, name in enumerate(names.values())}
    names_of = {**numbers, **{name: name for name in names.values()}, **names}
    unknown = sorted(used - names_of.keys())
    if unknown:
        raise UserError(
            options.class_labels,
            f"{counted(len(unknown), 'label is', 'labels are')} not in it, such as {unknown[0]!r}",
        )
    return [[names_of[label] for label in row_labels] for row_labels in labels], list(
        names.values()
    )
