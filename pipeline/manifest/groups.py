"""Clips that belong together: of one speaker, session or video.

A model that has heard a speaker scores too well on other clips of the same speaker. So folds keep a
group together if the user names it, and a group that seems to have been forgotten is warned of.

N clips.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

_WORDS = (
    "speaker|spk|subject|participant|patient|person|actor|singer|performer|artist|individual|"
    "animal|client|user|recordist|uploader|video|youtube|ytid|session|recording|src|source|"
    "original|track|song|site|location"
)
_LIKELY = re.compile(rf"(?:^|[\W_])(?:{_WORDS})(?:s|id|name|file)?(?:[\W_]|$)", re.IGNORECASE)
_VIDEO = r"(?:^|/)Y?(?P<video>[A-Za-z0-9_-]{11})_[0-9]+(?:_[0-9]+)?(?:\.[A-Za-z0-9]+)*$"
_MOST = 0.8


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """Which group each clip belongs to."""

    name: str
    """A column of the source, or what else tells the groups apart."""
    values: pa.ChunkedArray
    """`[N]` texts; null or empty: unknown."""
    remedy: str
    """How to keep the groups together."""


def column_grouping(name: str, values: Sequence[str | None] | pa.Array) -> Grouping:
    """The grouping by a column of the source."""
    quoted = name if re.fullmatch(r"[\w.-]+", name) else repr(name)
    remedy = f"--folds 5 --group {quoted} keeps them together"
    return Grouping(name=name, values=_texts(values), remedy=remedy)


def is_likely_group(column: str) -> bool:
    """Whether the name of a column is that of a speaker, session, video or the like."""
    return _LIKELY.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column)) is not None


def videos_in_names(ids: pa.Array) -> Grouping | None:
    """The videos by which clips are named, as `ID_START` of AudioSet; None if most are not."""
    videos = pc.struct_field(pc.extract_regex(ids, _VIDEO), "video")
    if len(videos) - videos.null_count < _MOST * len(videos):
        return None
    remedy = "list the clips in a table with a column video, and add --folds 5 --group video"
    return Grouping(name="video", values=_texts(videos), remedy=remedy)


def known(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """`[N]` where the group is known."""
    return pc.fill_null(pc.not_equal(values, ""), False)


def _texts(values: Sequence[str | None] | pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(values, pa.ChunkedArray):
        return values
    texts = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
    return pa.chunked_array([texts])
