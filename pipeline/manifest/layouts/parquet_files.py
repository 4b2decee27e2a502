"""Audio in Parquet files, as Hugging Face's `datasets` writes them: one row per clip.

The audio is a column `struct<bytes, path>` or of plain bytes; labels are texts, lists of texts, or
numbers whose names are in the schema's metadata. Listing reads the small columns and never the
audio, which `parquet_audio.read_audio` reads later.
"""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError, one_line
from pipeline.manifest.layouts.container_rows import (
    ROW_SCHEMA,
    Problems,
    choose_fields,
    label_list,
    likely_group,
    read_containers,
    split_of,
)
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.parquet_audio import audio_column, is_damage
from pipeline.manifest.manifest import Manifest
from pipeline.terminal.units import counted

SUFFIX = ".parquet"


def read(source: str, options: SourceOptions) -> Manifest:
    """List all Parquet files below a folder, or one file.

    Raises:
        UserError: there are none, none holds audio, or a label is not in `class_labels`.
    """
    return read_containers(source, (SUFFIX,), list_file, options)


def list_file(
    path: str, name: str, fields: Mapping[str, tuple[str, ...]]
) -> tuple[pa.Table, Problems]:
    """The clips of a file; a file without audio, or a damaged one, yields a problem instead."""
    with storage.open_binary(path) as file:
        try:
            return _list(pq.ParquetFile(file, pre_buffer=True), path, name, fields), Counter()
        except (pa.ArrowException, OSError, UserError) as error:
            if not isinstance(error, UserError) and not is_damage(error):
                raise
            problem = f"left out: not a Parquet file of audio ({one_line(error)})"
            return ROW_SCHEMA.empty_table(), Counter([problem])


def _list(
    file: pq.ParquetFile, path: str, name: str, fields: Mapping[str, tuple[str, ...]]
) -> pa.Table:
    schema = file.schema_arrow
    audio, _, in_struct = audio_column(schema).partition(".")
    chosen = choose_fields(schema.names, fields)
    plain = [field.name for field in schema if _is_plain(field.type) and field.name != audio]
    likely = likely_group(plain, fields, chosen)
    if likely is not None:
        chosen["group"] = likely
    file_name = [f"{audio}.path"] if in_struct and "path" in schema.field(audio).type.names else []
    table = file.read(columns=[*chosen.values(), *file_name], use_threads=False)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    columns: dict[str, Any] = {
        ours: table[theirs].cast(ROW_SCHEMA.field(ours).type)
        for ours, theirs in chosen.items()
        if ours not in ("id", "labels")
    }
    columns["row_group"] = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    columns["row"] = np.concatenate([np.arange(n, dtype=np.int32) for n in [0, *sizes]])
    columns["uri"] = pa.repeat(path, table.num_rows)
    columns["group_name"] = pa.repeat(pa.scalar(likely, pa.string()), table.num_rows)
    positions = [f"{g}-{r}" for g, r in zip(columns["row_group"], columns["row"], strict=True)]
    names = [table[chosen["id"]].cast(pa.string())] if "id" in chosen else []
    names += [pc.struct_field(table[audio], "path")] if file_name else []
    columns["name"] = pc.coalesce(*names, pa.array(positions, pa.string()))
    if "labels" in chosen:
        columns["labels"] = _labels(table[chosen["labels"]], _class_names(schema, chosen["labels"]))
    split = pa.repeat(pa.scalar(split_of(name), pa.string()), table.num_rows)
    columns["split"] = pc.coalesce(columns.get("split", split), split)
    filled = {
        field.name: columns.get(field.name, pa.nulls(table.num_rows, field.type))
        for field in ROW_SCHEMA
    }
    return pa.table(filled, schema=ROW_SCHEMA)


def _is_plain(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_integer(kind))


def _labels(column: pa.ChunkedArray, names: list[str] | None) -> list[list[str] | None]:
    values = column.to_pylist()
    if names is not None:
        values = [_named(value, names) for value in values]
    return [label_list(value) for value in values]


def _named(value: Any, names: list[str]) -> Any:
    """Class numbers replaced by names; -1 stands for an unknown class."""
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if not isinstance(value, int):
        return value
    if value >= len(names):
        have = counted(len(names), "class has a name", "classes have names")
        raise UserError("", f"a label is {value}, but only {have}")
    return names[value] if value >= 0 else None


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    """The names of a column's classes, from the metadata that `datasets` adds to the schema."""
    metadata = (schema.metadata or {}).get(b"huggingface")
    feature = json.loads(metadata)["info"]["features"].get(column) if metadata else None
    while feature and "names" not in feature:
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    return feature["names"] if feature else None
