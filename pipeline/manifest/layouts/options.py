"""Options that describe a source; each layout reads those it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import UserError
from pipeline.manifest.splits import TRAIN_SPLIT


def split_and_path(given: str) -> tuple[str | None, str]:
    """The two parts of `SPLIT=PATH`; None and the path where no split is given."""
    split, sign, path = given.partition("=")
    return (split, path) if sign and "/" not in split else (None, given)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options of all layouts."""

    segments: tuple[str, ...] = ()
    """AudioSet's segment CSVs, each `SPLIT=PATH`, or a path whose name implies the split."""
    class_labels: str | None = None
    """A label CSV: index, mid, display_name."""
    cut: Literal["auto", "yes", "no"] = "auto"
    """Whether AudioSet's files named by an id alone are already cut clips, or whole videos."""
    common_ids: str | None = None
    """A text file or CSV with the ids of a subset that others report on."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """For tables: our name of a column -> the table's, or a text with `{COLUMN}` in it."""
    separator: str = ";"
    """For tables: the separator of a clip's labels."""
    group: str = ""
    """The column, or a text with `{COLUMN}` in it, that clips belong together by; empty: none."""
    split: str = TRAIN_SPLIT
    """The split of clips whose source names none."""

    def __post_init__(self) -> None:
        if not self.separator:
            raise UserError("--separator", "must not be empty", "drop it to separate labels by ';'")
