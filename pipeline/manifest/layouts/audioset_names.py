"""YouTube's id, and the start of a stretch, in the names of files.

In: names as `ID`, `YID`, `ID_START` or `ID_START_END`, START in seconds or milliseconds, or as
yt-dlp and youtube-dl do, `TITLE [ID]` or `TITLE-ID`; with any suffix and in any folder. Out: the id
that each name holds, or two, of which the listed ids tell the right one.

F files.
"""

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.layouts.segments import YOUTUBE_ID

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_NAME = (
    rf"(?:^|/)(?:[^/]*?[-\[ ])??Y?(?P<id>{YOUTUBE_ID})"
    rf"(?:_(?P<start>{_NUMBER})(?:_{_NUMBER})?)?\]?(?:\.[A-Za-z0-9]+)*$"
)
"""A title may precede the id. Otherwise it is unambiguous, as ids have 11 characters: an id is
followed by nothing, suffixes, or `_` and a digit, and the first character after a misaligned id is
none of these."""
_NAME_AT_END = rf"[-\[ ](?P<id>{YOUTUBE_ID})\]?(?:\.[A-Za-z0-9]+)*$"
"""After a title that looks as if it held an id and a start."""


def ids_in_names(names: pa.ChunkedArray) -> pa.Table:
    """`[F]` `id` and `start` as in the name (null: none), and `other`, if that may be the id."""
    fields = pc.extract_regex(names, _NAME).combine_chunks()
    first, start = (pc.struct_field(fields, name) for name in ("id", "start"))
    start = pc.if_else(pc.equal(start, ""), None, start)
    other = pc.struct_field(pc.extract_regex(names, _NAME_AT_END).combine_chunks(), "id")
    other = pc.if_else(pc.fill_null(pc.equal(first, other), False), None, other)
    return pa.table({"id": first, "start": start.cast(pa.float64()), "other": other})


def chosen_ids(candidates: pa.Table, is_listed: pa.ChunkedArray) -> pa.Table:
    """`[F]` `id` and `start`; the other id, without a start, where the first is not listed."""
    use_first = pc.or_(is_listed, pc.is_null(candidates["other"]))
    return pa.table(
        {
            "id": pc.if_else(use_first, candidates["id"], candidates["other"]),
            "start": pc.if_else(use_first, candidates["start"], None),
        }
    )
