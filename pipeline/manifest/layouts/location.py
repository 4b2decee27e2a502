"""All audio of a location, in one table: plain files, and clips in Parquet, tar and HDF5 files.

In: a folder or prefix, or one container file. Steps: list the files, keep audio, list
containers with `parquet_files`, `tar_files` and `hdf5_files`. Out: a table of `LISTING_SCHEMA`.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.manifest.layouts import hdf5_files, parquet_files, tar_files
from pipeline.manifest.layouts.audio_files import AudioFiles
from pipeline.manifest.layouts.container_rows import Problems, iter_rows, note_problems
from pipeline.manifest.layouts.listing import HDF5_SUFFIXES, LISTING_SCHEMA, no_files_error
from pipeline.manifest.layouts.visible import VisibleFiles
from pipeline.terminal.units import counted

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
    listing = AudioListing(location)
    tables = [LISTING_SCHEMA.empty_table(), *listing.tables()]
    return pa.concat_tables(tables), listing.notes


class AudioListing:
    """Lists a location, and notes what it leaves out."""

    def __init__(self, location: str) -> None:
        self._location = location
        self.notes: list[str] = []
        """Complete once all tables are read."""

    def tables(self, num_rows: int = 1) -> Iterator[pa.Table]:
        """What it holds, in no particular order, in tables of at least `num_rows` each.

        Raises:
            UserError: the location has no files.
        """
        containers: dict[str, list[str]] = {suffix: [] for suffix in _CONTAINERS}
        num_files = num_others = 0
        audio_files = AudioFiles()
        files = VisibleFiles(self._location)
        is_one = self._location.lower().endswith(tuple(_CONTAINERS))
        listed = [_one_file(self._location)] if is_one else files.batches()
        for batch in _joined((pa.Table.from_batches([part]) for part in listed), num_rows):
            is_audio = audio_files.mask(batch["path"])
            yield _plain_files(batch.filter(is_audio), self._location)
            others = batch["path"].filter(pc.invert(is_audio))
            num_files += batch.num_rows
            num_others += len(others)
            for suffix, paths in containers.items():
                is_container = pc.ends_with(others, suffix, ignore_case=True)
                paths += others.filter(is_container).to_pylist()
        if not num_files:
            raise no_files_error(self._location)
        for suffix, paths in containers.items():
            if paths:
                problems: list[Problems] = []
                found = iter_rows(sorted(paths), self._location, _CONTAINERS[suffix], problems)
                rows = (table.select(LISTING_SCHEMA.names) for table in found)
                yield from _joined(rows, num_rows)
                self.notes += note_problems(sorted(paths), problems)
                num_others -= len(paths)
        self.notes += files.notes()
        if num_others:
            left_out = counted(num_others, "file that is", "files that are")
            self.notes.append(f"left out {left_out} not audio")


def _joined(tables: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """Tables, as of a page or a folder, put together to some of at least `num_rows`."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= num_rows:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _one_file(location: str) -> pa.RecordBatch:
    return pa.record_batch({"path": [location], "size_bytes": [None]})


def _plain_files(batch: pa.Table, location: str) -> pa.Table:
    columns = {
        "name": pc.utf8_slice_codeunits(batch["path"], len(storage.join(location, ""))),
        "uri": batch["path"],
        "file_size_bytes": batch["size_bytes"],
    }
    filled = [
        columns.get(field.name, pa.nulls(batch.num_rows, field.type)) for field in LISTING_SCHEMA
    ]
    return pa.table(filled, schema=LISTING_SCHEMA)
