"""A source in any layout to a manifest."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import PurePosixPath

import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.files import is_manifest
from pipeline.manifest.layouts import csv_table, esc50, speech_commands
from pipeline.manifest.layouts.common_ids import mark_common
from pipeline.manifest.layouts.listing import AUDIO_SUFFIXES, CONTAINER_SUFFIXES, HDF5_SUFFIXES
from pipeline.manifest.layouts.names import LAYOUTS, READ_BY
from pipeline.manifest.layouts.options import SourceOptions, split_and_path
from pipeline.manifest.layouts.visible import VisibleFiles
from pipeline.manifest.manifest import Manifest
from pipeline.storage.stored_table import batches

_SAMPLE_SIZE = 4
"""Parquet files that are told from manifests."""
_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "ast-json",
    ".parquet": "parquet",
    ".tar": "webdataset",
    **dict.fromkeys(HDF5_SUFFIXES, "hdf5"),
}


def detect(source: str, options: SourceOptions | None = None) -> str:
    """The layout's name, from the options and the file names at the source; by default a folder
    per class."""
    if options and options.segments:
        return "ast-json" if options.segments[0].lower().endswith(".json") else "audioset"
    suffix = PurePosixPath(source).suffix.lower()
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    if storage.exists(storage.join(source, *esc50.META_PATH)):
        return "esc50"
    if any(storage.exists(storage.join(source, name)) for name in speech_commands.LISTS.values()):
        return "speech-commands"
    return _detect_containers(source) or "folder"


def read_sources(sources: Sequence[str], layout: str, options: SourceOptions) -> Manifest:
    """List a source, or several tables together, each a path or `SPLIT=PATH`.

    Raises:
        UserError: a source is empty or not in that layout, or several are not all tables.
    """
    tables = [split_and_path(source) for source in sources]
    if len(sources) == 1 and tables[0][0] is None:
        return read_source(sources[0], layout, options)
    for _, path in tables:
        storage.check_bucket(path)
        if layout not in ("auto", "csv") or detect(path, options) != "csv":
            raise UserError(path, "not a table", "only tables can be combined or given a split")
    return _complete(csv_table.read_tables(sources, options), "csv", ", ".join(sources), options)


def read_source(
    source: str, layout: str = "auto", options: SourceOptions | None = None
) -> Manifest:
    """List a source in the named layout (`auto` to detect it).

    Raises:
        UserError: the source is empty or not in that layout.
    """
    storage.check_bucket(source)
    options = options or SourceOptions()
    name = detect(source, options) if layout == "auto" else layout
    return _complete(_reader(name)(source, options), name, source, options)


def _complete(manifest: Manifest, name: str, source: str, options: SourceOptions) -> Manifest:
    """The manifest with further notes and the common subset; an empty one is refused."""
    if manifest.clips.num_rows == 0:
        why = "".join(f" ({note})" for note in manifest.notes)
        raise UserError(
            source,
            f"no clip found in the layout {name!r}{why}",
            f"layouts are {', '.join(LAYOUTS)}, see `manifest --help`",
        )
    if options.group and manifest.group is None:
        raise UserError(
            f"--group {options.group}",
            f"{source} has the layout {name!r}, which has no columns",
            f"list the files in a table with columns path, labels and {options.group}",
        )
    manifest = replace(manifest, notes=(*manifest.notes, *_without_effect(options, name, manifest)))
    return mark_common(manifest, options.common_ids) if options.common_ids else manifest


def _reader(layout: str) -> Callable[[str, SourceOptions], Manifest]:
    module = import_module(f"pipeline.manifest.layouts.{LAYOUTS[layout]}")
    read: Callable[[str, SourceOptions], Manifest] = module.read
    return read


def _without_effect(options: SourceOptions, layout: str, manifest: Manifest) -> list[str]:
    """Notes on options that were given but have no effect."""
    default = SourceOptions()
    notes = [
        f"{flag} has no effect: the layout {layout!r} does not read it"
        for name, (flag, layouts) in READ_BY.items()
        if layout not in layouts and getattr(options, name) != getattr(default, name)
    ]
    if options.split != default.split and not any(
        pc.any(pc.equal(batch["split"], options.split)).as_py()
        for batch in batches(manifest.clips, ["split"])
    ):
        notes.append(
            f"--split {options.split} has no effect: the source names the split of every clip"
        )
    return notes


def _detect_containers(source: str) -> str | None:
    """The layout of a folder's container files; None if an audio file is listed first."""
    for batch in VisibleFiles(source).batches():
        by_suffix: dict[str, list[str]] = {}
        for path in batch["path"].to_pylist():
            by_suffix.setdefault(PurePosixPath(path).suffix.lower(), []).append(path)
        if by_suffix.keys() & AUDIO_SUFFIXES:
            return None
        for suffix in CONTAINER_SUFFIXES:
            paths = by_suffix.get(suffix, [])
            # An earlier run may have written its manifest into the folder.
            if suffix == ".parquet":
                paths = [path for path in paths[:_SAMPLE_SIZE] if not is_manifest(path)]
            if paths:
                return _BY_SUFFIX[suffix]
    return None
