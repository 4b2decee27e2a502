"""Names of splits."""

import re

from pipeline.errors import UserError

TRAIN_SPLIT = "train"
"""The split a clip belongs to when its source names none."""


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
