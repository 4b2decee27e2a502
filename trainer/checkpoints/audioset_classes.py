"""AudioSet's 527 classes: their machine ids and display names, in the order of published models.

`audioset_classes.csv` has the form of AudioSet's `class_labels_indices.csv`.
"""

from functools import cache
from pathlib import Path

from pipeline.manifest.layouts.segments import read_vocabulary

NUM_AUDIOSET_CLASSES = 527
_FILE = Path(__file__).with_name("audioset_classes.csv")


def audioset_names() -> list[str]:
    """Display names, in order."""
    return list(_names().values())


def other_name(label: str) -> str | None:
    """The display name of a machine id and the other way round; None for any other label."""
    return _other_names().get(label)


@cache
def _names() -> dict[str, str]:
    return read_vocabulary(str(_FILE))


@cache
def _other_names() -> dict[str, str]:
    return {**_names(), **{name: mid for mid, name in _names().items()}}
