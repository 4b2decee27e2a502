"""ESC-50's layout (K. J. Piczak): `audio/*` and `meta/esc50.csv` with folds and class numbers.

Subsets of it, such as ESC-10, have the same layout. Classes keep the order of their numbers.
"""

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.csv_table import read_rows
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.manifest import Clip, Manifest, from_clips

META_PATH = ("meta", "esc50.csv")
_COLUMNS = ("filename", "fold", "target", "category")


def read(source: str, options: SourceOptions) -> Manifest:
    """List a folder in ESC-50's layout.

    Raises:
        UserError: `meta/esc50.csv` is missing, lacks a column, has an invalid number, or numbers
            the classes inconsistently.
    """
    meta = storage.join(source, *META_PATH)
    rows = [row for _, row in read_rows(meta, required=_COLUMNS)]
    try:
        classes = sorted({(int(row["target"]), row["category"]) for row in rows})
        clips = [
            Clip(
                id=row["filename"].rpartition(".")[0] or row["filename"],
                uri=storage.join(source, "audio", row["filename"]),
                labels=(row["category"],),
                split=options.split,
                fold=int(row["fold"]),
            )
            for row in rows
        ]
    except ValueError as error:
        raise UserError(meta, f"fold and target must be whole numbers ({error})") from error
    if len({target for target, _ in classes}) != len({category for _, category in classes}):
        raise UserError(meta, "a class has two numbers, or a number two classes")
    return from_clips(clips, [category for _, category in classes])
