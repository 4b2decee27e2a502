"""The manifest: which clips there are, one row a clip, as a Parquet table.

A clip is an audio file or a stretch of one, with its labels, split and fold. The file may lie in
another: a member of a tar (`offset_bytes`, `size_bytes`) or a row of a Parquet file (`row_group`,
`row`). The vocabulary (the order of the labels is the order of the classes) and the coverage travel
in the table's schema metadata, so that a manifest is one file; one written by other means, without
it, gets the sorted labels it uses.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.splits import TRAIN_SPLIT, check_split

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("start_s", pa.float64()),  # null: from the beginning of the file
        pa.field("end_s", pa.float64()),  # null: to its end
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("fold", pa.int32(), nullable=False),  # 0: the data set has no folds
        pa.field("common", pa.bool_(), nullable=False),  # in the list of ids that others scored
        pa.field("offset_bytes", pa.int64()),  # of the audio in the file `uri`; null: all of it
        pa.field("size_bytes", pa.int64()),
        pa.field("row_group", pa.int32()),  # of the Parquet file `uri`; null: not in Parquet
        pa.field("row", pa.int32()),  # in the row group
    ]
)
_DEFAULTS = {"split": TRAIN_SPLIT, "fold": 0, "common": False}
_REQUIRED = ("id", "uri", "labels")
_METADATA_KEY = b"ast_ray.manifest"

_URI = r"^(/|s3://[^/]+/)."
_FAR_S = 1e9
"""Later than any recording ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One row of the manifest, as sources make it."""

    id: str
    uri: str
    labels: tuple[str, ...]
    split: str = TRAIN_SPLIT
    fold: int = 0
    start_s: float | None = None
    end_s: float | None = None
    common: bool = False
    offset_bytes: int | None = None
    size_bytes: int | None = None
    row_group: int | None = None
    row: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """The clips (a table of `SCHEMA`), the vocabulary, and what the source had to say."""

    clips: pa.Table
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out and why, one line each, for the user."""
    coverage: dict[str, Any] | None = None
    """Counts of what the source lists and what of it was found, where it tells; plain JSON."""
    missing: pa.Table | None = None
    """What the source lists and was not found, where it tells; not written with the clips."""


def from_clips(clips: Sequence[Clip], labels: Sequence[str], notes: Sequence[str] = ()) -> Manifest:
    """Build a manifest from rows."""
    columns = {name: [getattr(clip, name) for clip in clips] for name in SCHEMA.names}
    try:
        return from_columns(columns, labels, notes)
    except (pa.ArrowInvalid, OverflowError) as error:
        raise UserError("", f"a fold is too large a number ({error})") from error


def from_columns(
    columns: Mapping[str, Any],
    labels: Sequence[str],
    notes: Sequence[str] = (),
    coverage: dict[str, Any] | None = None,
) -> Manifest:
    """Build a manifest of millions of clips from columns of `SCHEMA`, lists or Arrow arrays.

    `id`, `uri` and `labels` must be there; others that are absent get their defaults.
    """
    num_clips = len(columns["id"])
    filled = {
        field.name: columns.get(field.name, pa.repeat(_default(field), num_clips))
        for field in SCHEMA
    }
    table = pa.table(filled, schema=SCHEMA)
    return Manifest(clips=table, labels=tuple(labels), notes=tuple(notes), coverage=coverage)


def check(manifest: Manifest, path: str) -> None:
    """Refuse an invalid manifest.

    Raises:
        UserError: it names no clip, an id is empty or stands there twice, a URI means nothing in
            another process or has control characters, a label is outside the vocabulary, a split
            cannot name shards, a stretch is none, or a fold or a place in a container is negative
            or half there. `path` is what the message calls it.
    """
    clips = manifest.clips
    if clips.num_rows == 0:
        raise UserError(path, "the manifest names no clip")
    # First, as messages name clips by their ids, which often are their paths.
    named = pc.match_substring_regex(clips["uri"], _URI)
    expected = "an absolute path or s3://bucket/key, without file://"
    _refuse(clips, pc.invert(named), "uri", expected, path)
    unprintable = pc.match_substring_regex(clips["uri"], "[[:cntrl:]]")
    _refuse(clips, unprintable, "uri", "without line ends and other control characters", path)
    _check_ids(clips["id"], path)
    _check_labels(clips, manifest.labels, path)
    for split in pc.unique(clips["split"]).to_pylist():
        check_split(split, path)
    start_s, end_s = pc.fill_null(clips["start_s"], 0.0), pc.fill_null(clips["end_s"], _FAR_S)
    _refuse(clips, _outside(start_s, 0.0, _FAR_S), "start_s", "seconds, 0 or more", path)
    _refuse(clips, _outside(end_s, 0.0, _FAR_S), "end_s", "seconds, above start_s", path)
    _refuse(clips, pc.less_equal(end_s, start_s), "end_s", "seconds, above start_s", path)
    for name in ("fold", "offset_bytes", "size_bytes", "row_group", "row"):
        _refuse(clips, pc.less(clips[name], 0), name, "0 or more", path)
    for name, other in (("offset_bytes", "size_bytes"), ("row_group", "row")):
        alone = pc.xor(pc.is_null(clips[name]), pc.is_null(clips[other]))
        _refuse(clips, alone, name, f"given together with {other}", path)


def note_unlabelled(manifest: Manifest, source: str, *, required: bool = True) -> Manifest:
    """The manifest with a note on how many clips have no label.

    Args:
        manifest: clips of a source.
        source: what the message calls it.
        required: whether at least one has to have one.

    Raises:
        UserError: none has one, nor is there a vocabulary.
    """
    num_clips = manifest.clips.num_rows
    is_bare = pc.equal(pc.list_value_length(manifest.clips["labels"]), 0)
    num_bare = pc.sum(is_bare).as_py()
    if not num_bare:
        return manifest
    if required and num_bare == num_clips and not manifest.labels:
        raise UserError(
            source,
            f"none of {num_clips:,} clips has a label",
            "fill them in, or name the column that holds them with --column labels=NAME",
        )
    return replace(manifest, notes=(*manifest.notes, f"{num_bare:,} clips have no label"))


def assign_folds(manifest: Manifest, num_folds: int) -> Manifest:
    """Number the clips 1 to `num_folds`, evenly within each class and the same in every run.

    A clip's class is its first label; the order within a class is by a hash of the id, so that
    neighbouring files (often cuts of one recording) are not dealt out in turn by their names.
    """
    if not 2 <= num_folds <= 100:
        raise UserError("--folds", f"must be from 2 to 100, got {num_folds}")
    clips = manifest.clips.select(["id", "labels"]).to_pylist()
    ordered = sorted(
        range(len(clips)), key=lambda i: (clips[i]["labels"][:1], _hash(clips[i]["id"]))
    )
    folds = [0] * len(clips)
    for position, row in enumerate(ordered):
        folds[row] = position % num_folds + 1
    sizes = Counter(label for clip in clips for label in clip["labels"][:1])
    small = [label for label in manifest.labels if 0 < sizes[label] < num_folds]
    note = f"{len(small)} classes have fewer than {num_folds} clips, so not one in each fold: "
    notes = (*manifest.notes, note + ", ".join(small[:5])) if small else manifest.notes
    column = pa.array(folds, pa.int32())
    table = manifest.clips.set_column(SCHEMA.get_field_index("fold"), SCHEMA.field("fold"), column)
    return replace(manifest, clips=table, notes=notes)


def write_manifest(path: str, manifest: Manifest) -> None:
    """Check the manifest, then write it.

    Raises:
        UserError: `check` finds fault, or the path does not end in `.parquet`.
    """
    if not path.endswith(".parquet"):
        raise UserError(path, "a manifest is a Parquet file", "give it a name ending in .parquet")
    check(manifest, path)
    document = {"labels": manifest.labels, "coverage": manifest.coverage}
    metadata = {_METADATA_KEY: json.dumps(document).encode()}
    storage.write_table(path, manifest.clips.replace_schema_metadata(metadata))


def read_manifest(path: str) -> Manifest:
    """Read and check a manifest; columns beside `id`, `uri` and `labels` may be absent.

    Raises:
        UserError: there is no such file, it is not Parquet, a column is missing or of another
            type, or `check` finds fault.
    """
    try:
        table = storage.read_table(path)
    except FileNotFoundError as error:
        raise UserError(path, "no manifest there", "write one with `manifest`") from error
    except (pa.ArrowException, OSError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error.__cause__, IsADirectoryError):
            raise
        raise UserError(
            path, "not a manifest (a Parquet file)", "write one with `manifest`"
        ) from error
    metadata = (table.schema.metadata or {}).get(_METADATA_KEY)
    clips = _conform(table, path)
    document: dict[str, Any] = (
        json.loads(metadata) if metadata else {"labels": _labels_in_use(clips)}
    )
    manifest = Manifest(
        clips=clips, labels=tuple(document["labels"]), coverage=document.get("coverage")
    )
    check(manifest, path)
    return manifest


def read_labels(path: str) -> tuple[str, ...]:
    """A vocabulary from a text file, one label a line, in the order of the classes."""
    try:
        lines = storage.read_bytes(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise UserError(path, "no such file", "it should hold one label a line") from error
    except UnicodeDecodeError as error:
        raise UserError(path, f"not UTF-8 text ({error.reason})") from error
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(set(labels)) != len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise UserError(path, f"the label {twice!r} stands there twice")
    return labels


def _check_ids(ids: pa.ChunkedArray, path: str) -> None:
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(repeated):
        names = ", ".join(str(item["values"]) for item in repeated[:3].to_pylist())
        raise UserError(
            path,
            f"{len(repeated)} ids stand there twice or more, such as {names}",
            "give every clip one of its own (to a table add a column id)",
        )
    if pc.any(pc.equal(ids, "")).as_py():
        raise UserError(path, "a clip has an empty id", "give every clip one of its own")


def _check_labels(clips: pa.Table, labels: Sequence[str], path: str) -> None:
    used = _labels_in_use(clips)
    unknown = sorted(set(used) - set(labels))
    if unknown:
        first = next(
            row["id"]
            for row in clips.select(["id", "labels"]).to_pylist()
            if unknown[0] in row["labels"]
        )
        raise UserError(
            path,
            f"{len(unknown)} labels are outside the vocabulary of {len(labels)}, such as "
            f"{unknown[0]!r} of clip {first}",
        )


def _outside(column: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    """Where a number is not from `low` to `high`; NaN is not."""
    return pc.invert(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))


def _refuse(clips: pa.Table, wrong: pa.ChunkedArray, name: str, expected: str, path: str) -> None:
    """Raise if any row is wrong in a column, with the first as the example."""
    rows = clips.filter(wrong)
    if rows.num_rows:
        row = rows.slice(0, 1).to_pylist()[0]
        raise UserError(
            path,
            f"{name} must be {expected}",
            f"clip {row['id']!r} has {row[name]!r} ({rows.num_rows} such clips)",
        )


def _labels_in_use(clips: pa.Table) -> list[str]:
    return sorted(pc.unique(pc.list_flatten(clips["labels"])).to_pylist())


def _conform(table: pa.Table, path: str) -> pa.Table:
    """The table with exactly `SCHEMA`'s columns and types."""
    columns = []
    for field in SCHEMA:
        if field.name in table.column_names:
            column = table[field.name]
        elif field.name in _REQUIRED:
            raise UserError(path, f"the manifest has no column {field.name!r}")
        else:
            column = pa.repeat(_default(field), table.num_rows)
        try:
            column = column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise UserError(
                path, f"column {field.name!r} is {column.type}, expected {field.type}"
            ) from error
        num_empty = column.null_count
        if field.name == "labels":
            num_empty += pc.list_flatten(column).null_count
        if not field.nullable and num_empty:
            raise UserError(path, f"column {field.name!r} has {num_empty} empty cells")
        columns.append(column)
    return pa.table(columns, schema=SCHEMA)


def _default(field: pa.Field) -> pa.Scalar:
    return pa.scalar(_DEFAULTS.get(field.name), field.type)


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
