"""Manifests and vocabularies as files.

In: a manifest, or the path of one: a Parquet table, local or on S3. Out: the file, or the manifest.
Both are checked. The vocabulary (the order of the labels is the order of the classes) and the
coverage travel in the table's schema metadata, so that a manifest is one file; one written by other
means, without it, gets the sorted labels it uses.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.checks import check
from pipeline.manifest.coverage import Coverage
from pipeline.manifest.manifest import SCHEMA, Manifest, default_value, labels_in_use
from pipeline.manifest.text_files import read_text
from pipeline.storage.stored_table import BATCH_ROWS, StoredTable, batches

_REQUIRED = ("id", "uri", "labels")
_METADATA_KEY = b"ast_ray.manifest"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """What the table's schema metadata holds besides the clips."""

    labels: tuple[str, ...]
    coverage: Coverage | None = None


def check_name(path: str) -> None:
    """Refuse a name that a manifest cannot have.

    Raises:
        UserError: it does not end in `.parquet`.
    """
    if not path.lower().endswith(".parquet"):
        raise UserError(path, "a manifest is a Parquet file", "give it a name ending in .parquet")


def write_manifest(path: str, manifest: Manifest) -> None:
    """Check the manifest, then write it.

    Raises:
        UserError: the manifest is invalid, or the path does not end in `.parquet`.
    """
    check_name(path)
    check(manifest, path)
    coverage = manifest.coverage and manifest.coverage.to_json()
    document = {"labels": manifest.labels, "coverage": coverage}
    schema = SCHEMA.with_metadata({_METADATA_KEY: json.dumps(document).encode()})
    storage.write_batches(path, schema, batches(manifest.clips))


def read_manifest(path: str, batch_rows: int = BATCH_ROWS) -> Manifest:
    """Read and check a manifest; columns other than `id`, `uri` and `labels` are optional.

    Args:
        path: the file.
        batch_rows: most clips that are in memory at once.

    Raises:
        UserError: there is no such file, it is not Parquet, a column is missing or of another
            type, or the manifest is invalid.
    """
    clips = StoredTable(SCHEMA)
    num_empty = Counter[str]()
    used: set[str] = set()
    with _explained(path):
        tables = storage.iter_table(path, SCHEMA, batch_rows)
        schema = next(tables).schema
        _check_names(schema, path)
        text = (schema.metadata or {}).get(_METADATA_KEY)
        for table in tables:
            batch = _conform(table, path)
            num_empty.update(_count_empty(batch))
            if not num_empty:
                clips.append(batch)
                if text is None:
                    used.update(labels_in_use(batch))
    for name in filter(num_empty.get, SCHEMA.names):
        raise UserError(path, f"column {name!r} has {num_empty[name]} empty cells")
    if text is None:
        metadata = _Metadata(labels=tuple(sorted(used)))
    else:
        try:
            metadata = storage.parse_document(text, _Metadata)
        except storage.DocumentError as error:
            fault = f"its metadata ({_METADATA_KEY.decode()}) is damaged: {error}"
            raise UserError(path, fault, "write the manifest again") from error
    manifest = Manifest(clips=clips, labels=metadata.labels, coverage=metadata.coverage)
    check(manifest, path)
    return manifest


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Says of a file that is missing, or no Parquet file, how to write a manifest."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(path, "no manifest here", "write one with `manifest`") from error
    except (storage.DocumentError, UserError) as error:
        if isinstance(error, UserError) and not isinstance(error.__cause__, IsADirectoryError):
            raise
        raise UserError(
            path, "not a manifest (a Parquet file)", "write one with `manifest`"
        ) from error


def is_manifest(path: str) -> bool:
    """Whether a file is a manifest that `write_manifest` wrote; a damaged one is none."""
    with storage.open_binary(path) as file:
        try:
            return _METADATA_KEY in (pq.read_schema(file).metadata or {})
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # of the storage; Arrow's own for a damaged file have no number
            return False


def read_labels(path: str) -> tuple[str, ...]:
    """A vocabulary from a text file, one label a line, in the order of the classes."""
    lines = read_text(path, "it should hold one label a line").splitlines()
    labels = tuple(line.strip() for line in lines if line.strip())
    if len(set(labels)) != len(labels):
        repeated = next(label for label in labels if labels.count(label) > 1)
        raise UserError(path, f"the label {repeated!r} is listed twice", "list each label once")
    return labels


def _check_names(schema: pa.Schema, path: str) -> None:
    for field in SCHEMA:
        count = schema.names.count(field.name)
        if count > 1:
            raise UserError(path, f"the manifest has several columns {field.name!r}")
        if not count and field.name in _REQUIRED:
            raise UserError(path, f"the manifest has no column {field.name!r}")


def _conform(table: pa.Table, path: str) -> pa.Table:
    """The table with exactly the columns and types of `SCHEMA`."""
    columns = []
    for field in SCHEMA:
        if field.name in table.column_names:
            column = table[field.name]
        else:
            column = pa.repeat(default_value(field), table.num_rows)
        try:
            columns.append(column.cast(field.type))
        except pa.ArrowException as error:
            raise UserError(
                path, f"column {field.name!r} is {column.type}, expected {field.type}"
            ) from error
    return pa.table(columns, schema=SCHEMA)


def _count_empty(clips: pa.Table) -> dict[str, int]:
    """Empty cells of each column that has some, but should not."""
    counts = {}
    for field in SCHEMA:
        num_empty = 0 if field.nullable else clips[field.name].null_count
        if field.name == "labels":
            num_empty += pc.list_flatten(clips["labels"]).null_count
        if num_empty:
            counts[field.name] = num_empty
    return counts
