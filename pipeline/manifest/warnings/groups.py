"""Warnings about groups of clips, such as those of a speaker, in several splits or folds."""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.groups import Grouping, known, videos_in_names
from pipeline.manifest.manifest import Manifest

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
        if (warning := _warn(grouping, manifest.clips[column], column)) is not None
    ]


def _warn(grouping: Grouping, parts: pa.ChunkedArray, column: str) -> str | None:
    num_parts = len(pc.unique(parts))
    table = pa.table({"group": grouping.values, "part": parts.combine_chunks()})
    table = table.filter(known(grouping.values))
    counts = table.group_by("group").aggregate([("part", "count_distinct"), ("part", "count")])
    num_groups = counts.num_rows
    if num_groups < num_parts:
        return None  # too few to keep together
    num_spread = pc.sum(pc.greater(counts["part_count_distinct"], 1)).as_py()
    if not num_spread:
        return None
    places = _PLACES[column]
    remedy = "put each in one split" if column == "split" else grouping.remedy
    return (
        f"{num_spread:,} of {num_groups:,} values of {grouping.name!r} have clips in several "
        f"{places}, so a model is scored on what it was trained on; {remedy}"
    )
