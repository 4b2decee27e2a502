"""Names of splits."""

import re

from pipeline.errors import UserError

TRAIN_SPLIT = "train"
"""The split a clip belongs to when its source names none."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "eval",
    "evaluation": "eval",
}
"""Names that folders of splits may have, in lower case."""

_TRAINING = re.compile(r"train.*|(un)?balanced.*", re.IGNORECASE)
_FOLD = re.compile(r"folds?[-_ ]?[0-9]+", re.IGNORECASE)
_PART = re.compile(rf"({'|'.join(SPLITS)})([-_ ]?(set|split|data|part|[0-9]+))?", re.IGNORECASE)


def check_split(split: str, where: str) -> None:
    """Refuse a split that cannot be part of a file name; the message starts with `where`.

    Raises:
        UserError: it is empty, or has characters other than letters, digits, `-` and `_`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", split):
        raise UserError(
            where,
            f"split {split!r}: shards are named after their split, so it may hold only "
            "letters, digits, '-' and '_'",
            "rename it",
        )


def is_for_training(split: str) -> bool:
    """Whether a split's name says that models learn from it: `train`, `unbalanced`."""
    return _TRAINING.fullmatch(split) is not None


def is_fold_name(name: str) -> bool:
    """Whether a name is that of a fold: `fold1`, `Fold_10`."""
    return _FOLD.fullmatch(name) is not None


def is_part_name(name: str) -> bool:
    """Whether a name is that of a split or fold rather than of a class: `test`, `train_set`."""
    return _PART.fullmatch(name.strip()) is not None or is_fold_name(name.strip())
