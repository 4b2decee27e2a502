"""What a user may say about a source, beside where it is; each layout reads what it needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.manifest import TRAIN_SPLIT


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOptions:
    """Options of all layouts."""

    segments: tuple[str, ...] = ()
    """AudioSet's segment CSVs, each `SPLIT=PATH`, or a path whose name tells the split."""
    class_labels: str | None = None
    """A label CSV: index, mid, display_name."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """For tables: our name of a column -> the table's."""
    split: str = TRAIN_SPLIT
    """The split of clips whose source names none."""
