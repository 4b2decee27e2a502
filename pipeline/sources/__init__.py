"""Layouts of audio data sets, one module each: a folder or table in, a `Manifest` out.

To add a layout, write a module with `read(source, options) -> Manifest` and name it in `LAYOUTS`;
if it can be told from the file names alone, add the sign to `detect`.
"""

from collections.abc import Callable

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.sources import csv_table, esc50, folder
from pipeline.sources.options import SourceOptions

LAYOUTS: dict[str, Callable[[str, SourceOptions], Manifest]] = {
    "esc50": esc50.read,
    "csv": csv_table.read,
    "folder": folder.read,
}


def detect(source: str) -> str:
    """The layout's name, from the file names at the source; a folder per class when in doubt."""
    if source.endswith((".csv", ".tsv")):
        return "csv"
    if storage.exists(storage.join(source, *esc50.META_PATH)):
        return "esc50"
    return "folder"


def read_source(
    source: str, layout: str = "auto", options: SourceOptions | None = None
) -> Manifest:
    """List a source in the named layout (`auto` to detect it).

    Raises:
        UserError: nothing is there, or what is there is not in that layout.
    """
    storage.check_bucket(source)
    name = detect(source) if layout == "auto" else layout
    manifest = LAYOUTS[name](source, options or SourceOptions())
    if manifest.clips.num_rows == 0:
        raise UserError(
            f"{source}: no clip found in the layout {name!r}; there are {', '.join(LAYOUTS)}, see "
            f"`ray_job.py manifest --help`"
        )
    return manifest
