"""Validation of manifests.

In: a manifest. Out: nothing, a note, or an error that names the first invalid clip.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest, labels_in_use
from pipeline.manifest.splits import check_split
from pipeline.storage.paths import SCHEMES, UNUSABLE_KEY

_BUCKET = rf"^({'|'.join(SCHEMES)})://[^/]+/"
_URI = rf"(^/|{_BUCKET})."
_MAX_S = 1e9
"""Longer than any recording."""


def check(manifest: Manifest, path: str) -> None:
    """Refuse an invalid manifest.

    Raises:
        UserError: the manifest has no clip, an id is empty or repeated, a URI is not absolute or
            has control characters, a label is outside the vocabulary, a split cannot name shards, a
            stretch is invalid, a fold is negative, or the location in a container is negative or
            incomplete. The message starts with `path`.
    """
    clips = manifest.clips
    if clips.num_rows == 0:
        raise UserError(path, "the manifest has no clip")
    # URIs first: other messages name clips by their ids, which often are their paths.
    is_absolute = pc.match_substring_regex(clips["uri"], _URI)
    expected = "an absolute path or s3://bucket/key (or gs://, az://), without file://"
    _refuse(clips, pc.invert(is_absolute), "uri", expected, path)
    unprintable = pc.match_substring_regex(clips["uri"], "[[:cntrl:]]")
    _refuse(clips, unprintable, "uri", "without line ends and other control characters", path)
    is_remote = pc.match_substring_regex(clips["uri"], _BUCKET)
    keys = pc.replace_substring_regex(clips["uri"], _BUCKET, "")
    unusable = pc.match_substring_regex(keys, UNUSABLE_KEY)
    _refuse(
        clips, pc.and_(is_remote, unusable), "uri", "a key without empty, . and .. segments", path
    )
    _check_ids(clips["id"], path)
    _check_labels(clips, manifest.labels, path)
    for split in pc.unique(clips["split"]).to_pylist():
        check_split(split, path)
    start_s, end_s = pc.fill_null(clips["start_s"], 0.0), pc.fill_null(clips["end_s"], _MAX_S)
    _refuse(clips, _outside(start_s, 0.0, _MAX_S), "start_s", "seconds, 0 or more", path)
    _refuse(clips, _outside(end_s, 0.0, _MAX_S), "end_s", "seconds, above start_s", path)
    _refuse(clips, pc.less_equal(end_s, start_s), "end_s", "seconds, above start_s", path)
    for name in ("fold", "offset_bytes", "size_bytes", "row_group", "row"):
        _refuse(clips, pc.less(clips[name], 0), name, "0 or more", path)
    for name, other in (("offset_bytes", "size_bytes"), ("row_group", "row")):
        alone = pc.xor(pc.is_null(clips[name]), pc.is_null(clips[other]))
        _refuse(clips, alone, name, f"given together with {other}", path)


def note_unlabelled(manifest: Manifest, source: str, *, required: bool = True) -> Manifest:
    """The manifest with a note on how many clips have no label.

    Args:
        manifest: clips of a source.
        source: the source, for the message.
        required: whether at least one clip must have a label.

    Raises:
        UserError: a label is required, but no clip has any and there is no vocabulary.
    """
    num_clips = manifest.clips.num_rows
    is_unlabelled = pc.equal(pc.list_value_length(manifest.clips["labels"]), 0)
    num_unlabelled = pc.sum(is_unlabelled).as_py()
    if not num_unlabelled:
        return manifest
    if required and num_unlabelled == num_clips and not manifest.labels:
        raise UserError(
            source,
            f"none of {num_clips:,} clips has a label",
            "fill them in, or name the column that holds them with --column labels=NAME",
        )
    have = "clip has" if num_unlabelled == 1 else "clips have"
    return replace(manifest, notes=(*manifest.notes, f"{num_unlabelled:,} {have} no label"))


def _check_ids(ids: pa.ChunkedArray, path: str) -> None:
    counts = pc.value_counts(ids)
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(repeated):
        names = ", ".join(str(entry["values"]) for entry in repeated[:3].to_pylist())
        raise UserError(
            path,
            f"{len(repeated)} duplicate ids, such as {names}",
            "remove what is listed twice, or give every clip a unique id (in a table, a column id)",
        )
    if pc.any(pc.equal(ids, "")).as_py():
        raise UserError(path, "a clip has an empty id", "give every clip a unique id")


def _check_labels(clips: pa.Table, labels: Sequence[str], path: str) -> None:
    used = labels_in_use(clips)
    unknown = sorted(set(used) - set(labels))
    if unknown:
        first = next(
            row["id"]
            for row in clips.select(["id", "labels"]).to_pylist()
            if unknown[0] in row["labels"]
        )
        raise UserError(
            path,
            f"{len(unknown)} labels are outside the vocabulary of {len(labels)}, such as "
            f"{unknown[0]!r} of clip {first}",
        )


def _outside(column: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    """Where a number is outside `low` to `high`, or NaN."""
    return pc.invert(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))


def _refuse(clips: pa.Table, wrong: pa.ChunkedArray, name: str, expected: str, path: str) -> None:
    """Raise if any row has a wrong value in a column; the message shows the first."""
    rows = clips.filter(wrong)
    if rows.num_rows:
        row = rows.slice(0, 1).to_pylist()[0]
        raise UserError(
            path,
            f"{name} must be {expected}",
            f"clip {row['id']!r} has {row[name]!r} ({rows.num_rows} such clips)",
        )
