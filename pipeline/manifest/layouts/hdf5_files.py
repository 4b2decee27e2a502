"""Audio in HDF5 packs, as the authors of PANNs and PaSST make them: one row per clip.

`audio_name` names a clip. `target` has its classes: a number, a row of zeros and ones, or such rows
packed to bits (`np.packbits`), as PaSST does. Their names are in `class_labels`, whose number of
classes tells the forms apart; without it the labels are the numbers of the classes. Listing never
reads the audio, which `hdf5_audio.read_audio` reads later.
"""

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import one_line
from pipeline.manifest.layouts.container_rows import (
    ROW_SCHEMA,
    Problems,
    choose_fields,
    read_containers,
    split_of,
)
from pipeline.manifest.layouts.hdf5_audio import (
    ROWS_PER_GROUP,
    DamagedPackError,
    audio_dataset,
    open_pack,
)
from pipeline.manifest.layouts.listing import HDF5_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.segments import read_vocabulary
from pipeline.manifest.manifest import Manifest
from pipeline.terminal.units import counted

_NAME, _TARGET = "audio_name", "target"


def read(source: str, options: SourceOptions) -> Manifest:
    """List all HDF5 packs below a folder, or one pack.

    Raises:
        UserError: there are none, none holds audio, or a label is not in `class_labels`.
    """
    names = read_vocabulary(options.class_labels) if options.class_labels else {}
    list_pack = partial(list_file, num_classes=len(names) or None)
    return read_containers(source, HDF5_SUFFIXES, list_pack, options)


def list_file(
    path: str,
    name: str,
    fields: Mapping[str, tuple[str, ...]],
    num_classes: int | None = None,
) -> tuple[pa.Table, Problems]:
    """The clips of a pack; one without audio, or a damaged one, yields a problem instead.

    Args:
        path: of the pack.
        name: relative to the source.
        fields: names of our fields in the pack.
        num_classes: how many classes `target` has; None: unknown.
    """
    with storage.open_binary(path) as file:
        try:
            with open_pack(file) as pack:
                return _list(pack, path, name, fields, num_classes), Counter()
        except DamagedPackError as error:
            problem = f"left out: not an HDF5 file of audio ({one_line(error)})"
            return ROW_SCHEMA.empty_table(), Counter([problem])


def _list(
    pack: Any,
    path: str,
    name: str,
    fields: Mapping[str, tuple[str, ...]],
    num_classes: int | None,
) -> pa.Table:
    audio = audio_dataset(pack)
    num_clips = len(audio)
    known = {
        **fields,
        "id": (*fields["id"], _NAME),
        "labels": (*fields["labels"], _TARGET),
    }
    chosen = choose_fields(list(pack), known)
    labels = chosen.pop("labels", None)
    columns: dict[str, Any] = {
        ours: _column(pack[theirs], num_clips) for ours, theirs in chosen.items()
    }
    indices = np.arange(num_clips)
    columns["name"] = columns.pop("id", None) or [str(index) for index in indices]
    columns["uri"] = pa.repeat(path, num_clips)
    if "group" in columns:
        columns["group"] = [str(value) for value in columns["group"]]
    columns["row_group"], columns["row"] = np.divmod(indices, ROWS_PER_GROUP)
    if labels is not None:
        columns["labels"] = _labels(pack[labels], num_clips, num_classes)
    split = pa.repeat(pa.scalar(split_of(name), pa.string()), num_clips)
    columns["split"] = pc.coalesce(pa.array(columns.get("split", split), pa.string()), split)
    filled = {
        field.name: columns.get(field.name, pa.nulls(num_clips, field.type)) for field in ROW_SCHEMA
    }
    return pa.table(filled, schema=ROW_SCHEMA)


def _column(dataset: Any, num_clips: int) -> list[Any]:
    """Numbers, or texts, of which HDF5 returns the bytes."""
    if dataset.shape != (num_clips,):
        raise ValueError(f"{dataset.name} has the shape {dataset.shape}, not ({num_clips},)")
    values = dataset[:].tolist()
    return [value.decode() if isinstance(value, bytes) else value for value in values]


def _labels(dataset: Any, num_clips: int, num_classes: int | None) -> list[list[str]]:
    """The labels of each clip: texts, or numbers of classes as texts."""
    if dataset.ndim == 1:
        return [[str(value)] for value in _column(dataset, num_clips)]
    rows = dataset[:]
    if rows.ndim != 2 or len(rows) != num_clips:
        raise ValueError(f"{dataset.name} has the shape {rows.shape}, not ({num_clips}, classes)")
    if rows.dtype == np.uint8 and _is_packed(rows, num_classes):
        rows = np.unpackbits(rows, axis=1)
        if num_classes is not None and not rows[:, num_classes:].any():
            rows = rows[:, :num_classes]  # the rest fills the last byte
    if num_classes not in (None, rows.shape[1]):
        has = counted(rows.shape[1], "class", "classes")
        raise ValueError(f"{dataset.name} has {has}, the label CSV {num_classes}")
    if not np.isin(rows, (0, 1)).all():
        raise ValueError(f"{dataset.name} has other numbers than 0 and 1")
    return [[str(number) for number in np.flatnonzero(row)] for row in rows]


def _is_packed(rows: npt.NDArray[np.uint8], num_classes: int | None) -> bool:
    """Whether each byte holds eight classes."""
    if num_classes is not None:
        num_bytes = -(-num_classes // 8)
        return bool(rows.shape[1] == num_bytes != num_classes)
    if rows.any() and rows.max() <= 1:
        raise ValueError("target may hold classes as bytes or as bits; --class-labels tells which")
    return True
