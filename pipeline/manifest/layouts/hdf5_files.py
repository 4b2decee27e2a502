"""Audio in HDF5 packs, as the authors of PANNs and PaSST make them: one row per clip.

`audio_name` names a clip. `target` has its classes: a number, a row of zeros and ones, or such rows
packed to bits (`np.packbits`), as PaSST does. Their names are in `class_labels`; without it the
labels are the numbers of the classes. Listing never reads the audio, which
`hdf5_audio.read_audio` reads later.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError, one_line
from pipeline.manifest.layouts.container_rows import (
    ROW_SCHEMA,
    Problems,
    choose_fields,
    read_containers,
    split_of,
)
from pipeline.manifest.layouts.hdf5_audio import ROWS_PER_GROUP, audio_dataset
from pipeline.manifest.layouts.listing import HDF5_SUFFIXES
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Manifest

_NAME, _TARGET = "audio_name", "target"


def read(source: str, options: SourceOptions) -> Manifest:
    """List all HDF5 packs below a folder, or one pack.

    Raises:
        UserError: there are none, none holds audio, or a label is not in `class_labels`.
    """
    return read_containers(source, HDF5_SUFFIXES, list_file, options)


def list_file(
    path: str, name: str, fields: Mapping[str, tuple[str, ...]]
) -> tuple[pa.Table, Problems]:
    """The clips of a pack; one without audio, or a damaged one, yields a problem instead."""
    with storage.open_binary(path) as file:
        try:
            with h5py.File(file, "r") as pack:
                return _list(pack, path, name, fields), Counter()
        except (KeyError, ValueError, TypeError, RuntimeError, OSError, UserError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            problem = f"left out: not an HDF5 file of audio ({one_line(error)})"
            return ROW_SCHEMA.empty_table(), Counter([problem])


def _list(pack: Any, path: str, name: str, fields: Mapping[str, tuple[str, ...]]) -> pa.Table:
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
    columns["row_group"], columns["row"] = np.divmod(indices, ROWS_PER_GROUP)
    if labels is not None:
        columns["labels"] = _labels(pack[labels], num_clips, is_packed=audio.name == "/mp3")
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


def _labels(dataset: Any, num_clips: int, *, is_packed: bool) -> list[list[str]]:
    """The labels of each clip: texts, or numbers of classes as texts."""
    if dataset.ndim == 1:
        return [[str(value)] for value in _column(dataset, num_clips)]
    rows = dataset[:]
    if rows.ndim != 2 or len(rows) != num_clips:
        raise ValueError(f"{dataset.name} has the shape {rows.shape}, not ({num_clips}, classes)")
    if is_packed and rows.dtype == np.uint8:
        rows = np.unpackbits(rows, axis=1)
    if not np.isin(rows, (0, 1)).all():
        raise ValueError(f"{dataset.name} has other numbers than 0 and 1")
    return [[str(number) for number in np.flatnonzero(row)] for row in rows]
