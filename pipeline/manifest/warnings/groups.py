"""Warnings about groups of clips, such as those of a speaker, in several splits or folds."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.groups import Grouping, known, videos_in_names
from pipeline.manifest.manifest import Manifest
from pipeline.storage.stored_table import StoredTable, batches
from pipeline.storage.table_hashes import text_hashes

_PLACES = {"split": "splits", "fold": "folds"}


def group_warnings(manifest: Manifest) -> list[str]:
    """A line for each column whose groups are in several splits, or in several folds."""
    groupings = list(manifest.likely_groups)
    if manifest.group is not None:
        groupings = [manifest.group]  # the user has decided
    elif not groupings:
        videos = videos_in_names(manifest.clips["id"])
        groupings = [videos] if videos else []
    return [
        warning
        for grouping in groupings
        for column in _PLACES
        if (warning := _warn(grouping, manifest.clips, column)) is not None
    ]


def _warn(grouping: Grouping, clips: pa.Table | StoredTable, column: str) -> str | None:
    parts = _numbers(clips, column)
    num_parts = int(parts.max()) + 1
    if num_parts == 1:
        return None
    is_known = np.asarray(known(grouping.values))
    groups = text_hashes(grouping.values.filter(pa.array(is_known)))
    parts = parts[is_known]
    order = np.lexsort((parts, groups))
    groups, parts = groups[order], parts[order]
    is_first = np.concatenate([[True], groups[1:] != groups[:-1]])[: len(groups)]
    num_groups = int(is_first.sum())
    if num_groups < num_parts:
        return None  # too few to keep together
    # In a group the parts are sorted: its last one differs from its first if there are several.
    starts = np.flatnonzero(is_first)
    ends = np.append(starts[1:], len(groups)) - 1
    num_spread = int((parts[starts] != parts[ends]).sum())
    if not num_spread:
        return None
    places = _PLACES[column]
    remedy = "put each in one split" if column == "split" else grouping.remedy
    return (
        f"{num_spread:,} of {num_groups:,} values of {grouping.name!r} have clips in several "
        f"{places}, so a model is scored on what it was trained on; {remedy}"
    )


def _numbers(clips: pa.Table | StoredTable, column: str) -> npt.NDArray[np.int32]:
    """`[N]` the number of each clip's split or fold."""
    number_of: dict[object, int] = {}
    numbers = []
    for batch in batches(clips, [column]):
        names = pc.unique(batch[column])
        own = [number_of.setdefault(name, len(number_of)) for name in names.to_pylist()]
        indices = pc.index_in(batch[column], names).to_numpy()
        numbers.append(np.array(own, dtype=np.int32)[indices])
    return np.concatenate(numbers)
