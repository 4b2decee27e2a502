"""All audio of a location, in one table: plain files, and clips in Parquet, tar and HDF5 files.

In: a folder or prefix, or one container file. Steps: list the files, keep audio, list
containers with `parquet_files`, `tar_files` and `hdf5_files`. Out: a table of `LISTING_SCHEMA`.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.manifest.layouts import hdf5_files, parquet_files, tar_files
from pipeline.manifest.layouts.audio_files import AudioFiles
from pipeline.manifest.layouts.container_rows import list_rows
from pipeline.manifest.layouts.listing import HDF5_SUFFIXES, LISTING_SCHEMA, no_files_error
from pipeline.manifest.layouts.visible import VisibleFiles

_CONTAINERS = {
    parquet_files.SUFFIX: parquet_files.list_file,
    tar_files.SUFFIX: tar_files.list_file,
    **dict.fromkeys(HDF5_SUFFIXES, hdf5_files.list_file),
}


def list_audio(location: str) -> tuple[pa.Table, list[str]]:
    """List a location, in no particular order, with notes on what was left out.

    Raises:
        UserError: the location has no files.
    """
    containers: dict[str, list[str]] = {suffix: [] for suffix in _CONTAINERS}
    tables = [LISTING_SCHEMA.empty_table()]
    notes: list[str] = []
    num_files = num_others = 0
    audio_files = AudioFiles()
    files = VisibleFiles(location)
    is_one = location.lower().endswith(tuple(_CONTAINERS))
    for batch in [_one_file(location)] if is_one else files.batches():
        is_audio = audio_files.mask(batch["path"])
        tables.append(_plain_files(batch.filter(is_audio), location))
        others = batch["path"].filter(pc.invert(is_audio))
        num_files += batch.num_rows
        num_others += len(others)
        for suffix, paths in containers.items():
            is_container = pc.ends_with(others, suffix, ignore_case=True)
            paths += others.filter(is_container).to_pylist()
    if not num_files:
        raise no_files_error(location)
    for suffix, paths in containers.items():
        if paths:
            rows, problems = list_rows(sorted(paths), location, _CONTAINERS[suffix])
            tables.append(rows.select(LISTING_SCHEMA.names))
            notes += problems
            num_others -= len(paths)
    notes += files.notes()
    if num_others:
        notes.append(f"left out {num_others:,} files that are not audio")
    return pa.concat_tables(tables), notes


def _one_file(location: str) -> pa.RecordBatch:
    return pa.record_batch({"path": [location], "size_bytes": [None]})


def _plain_files(batch: pa.RecordBatch, location: str) -> pa.Table:
    columns = {
        "name": pc.utf8_slice_codeunits(batch["path"], len(storage.join(location, ""))),
        "uri": batch["path"],
        "file_size_bytes": batch["size_bytes"],
    }
    filled = [
        columns.get(field.name, pa.nulls(batch.num_rows, field.type)) for field in LISTING_SCHEMA
    ]
    return pa.table(filled, schema=LISTING_SCHEMA)
