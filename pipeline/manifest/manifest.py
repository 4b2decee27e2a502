"""The manifest: the clips of a data set, one per row of a Parquet table.

A clip is an audio file or a stretch of one, with its labels, split and fold. The file may be inside
another: a member of a tar (`offset_bytes`, `size_bytes`), or a row of a Parquet file or HDF5 pack
(`row_group`, `row`). The order of the labels in the vocabulary is the order of the classes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest.coverage import Coverage
from pipeline.manifest.groups import Grouping, column_grouping
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.storage.stored_table import StoredTable, batches

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
        pa.field("row_group", pa.int32()),  # of the file `uri`; null: not a row of one
        pa.field("row", pa.int32()),  # in the row group
    ]
)
_DEFAULTS = {"split": TRAIN_SPLIT, "fold": 0, "common": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One row of the manifest, as a layout reads it."""

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
    """The clips (a table of `SCHEMA`), the vocabulary, and notes on the source."""

    clips: pa.Table | StoredTable
    """In memory or, if there may be millions, on the disk."""
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was left out and why, one line each, for the user."""
    warnings: tuple[str, ...] = ()
    """What looks wrong, one line each, with what to do."""
    group: Grouping | None = None
    """What the user named: folds keep its clips together; not written to the file."""
    likely_groups: tuple[Grouping, ...] = ()
    """Where the user named none: what clips seem to belong together by."""
    coverage: Coverage | None = None
    """How many of the clips that the source lists were found; None if it has no list."""
    missing: StoredTable | None = None
    """Listed clips that were not found, if the source has a list; not written to the file."""


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
    coverage: Coverage | None = None,
) -> Manifest:
    """Build a manifest of millions of clips from columns of `SCHEMA`, lists or Arrow arrays.

    `id`, `uri` and `labels` are required; other columns have defaults.
    """
    num_clips = len(columns["id"])
    filled = {
        field.name: columns.get(field.name, pa.repeat(default_value(field), num_clips))
        for field in SCHEMA
    }
    table = pa.table(filled, schema=SCHEMA)
    return Manifest(clips=table, labels=tuple(labels), notes=tuple(notes), coverage=coverage)


def with_groups(manifest: Manifest, chosen: str, columns: Mapping[str, Any]) -> Manifest:
    """The manifest with groups of its clips.

    Args:
        manifest: clips of a source.
        chosen: what the user named; empty: nothing, and the columns are only likely groups.
        columns: values of each column, for every clip.
    """
    groupings = tuple(column_grouping(name, values) for name, values in columns.items())
    if chosen:
        return replace(manifest, group=groupings[0])
    return replace(manifest, likely_groups=groupings)


def with_column(
    clips: pa.Table | StoredTable, name: str, parts: Iterable[pa.Array | pa.ChunkedArray]
) -> StoredTable:
    """The clips with other values in a column: those of each batch of `batches` in turn."""
    index = SCHEMA.get_field_index(name)
    changed = StoredTable(SCHEMA)
    for batch, values in zip(batches(clips), parts, strict=True):
        changed.append(batch.set_column(index, SCHEMA.field(name), values))
    return changed


def labels_in_use(clips: pa.Table) -> list[str]:
    """The labels of all clips in a table of `SCHEMA`, sorted."""
    return sorted(pc.unique(pc.list_flatten(clips["labels"])).to_pylist())


def to_clips(table: pa.Table) -> list[Clip]:
    """The rows of a table of `SCHEMA`."""
    return [Clip(**{**row, "labels": tuple(row["labels"])}) for row in table.to_pylist()]


def default_value(field: pa.Field) -> pa.Scalar:
    """What a column of `SCHEMA` holds where a source does not give it."""
    return pa.scalar(_DEFAULTS.get(field.name), field.type)
