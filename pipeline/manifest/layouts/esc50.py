"""ESC-50's layout (K. J. Piczak): `audio/*` and `meta/esc50.csv` with folds and class numbers.

Subsets of it, such as ESC-10, have the same layout. Classes keep the order of their numbers.
"""

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.csv_table import read_rows
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Clip, Manifest, from_clips, with_groups

META_PATH = ("meta", "esc50.csv")
_COLUMNS = ("filename", "fold", "target", "category")
_SOURCE = "src_file"
"""The recording that a clip was cut from; some subsets lack the column."""


def read(source: str, options: SourceOptions) -> Manifest:
    """List a folder in ESC-50's layout.

    Raises:
        UserError: `meta/esc50.csv` is missing, lacks a column, has an empty cell or an invalid
            number, or numbers the classes inconsistently.
    """
    meta = storage.join(source, *META_PATH)
    targets: set[tuple[int, str]] = set()
    clips = []
    group = options.group or _SOURCE
    groups = []
    for line, row in read_rows(meta, required=(*_COLUMNS, *filter(None, [options.group]))):
        where = f"{meta}, line {line}"
        empty = next((name for name in ("filename", "category") if not row[name]), None)
        if empty:
            raise UserError(where, f"the {empty} is empty")
        try:
            targets.add((int(row["target"]), row["category"]))
            fold = int(row["fold"])
        except ValueError as error:
            raise UserError(where, f"fold and target must be whole numbers ({error})") from error
        groups.append(row.get(group))
        clips.append(
            Clip(
                id=row["filename"].rpartition(".")[0] or row["filename"],
                uri=storage.join(source, "audio", row["filename"]),
                labels=(row["category"],),
                split=options.split,
                fold=fold,
            )
        )
    classes = sorted(targets)
    if len({target for target, _ in classes}) != len({category for _, category in classes}):
        raise UserError(meta, "a class has two numbers, or a number two classes")
    manifest = from_clips(clips, [category for _, category in classes])
    return with_groups(manifest, options.group, {group: groups})
