"""Validation of manifests.

In: a manifest. Out: nothing, a note, or an error that names the first invalid clip.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest, labels_in_use
from pipeline.manifest.splits import check_split
from pipeline.storage.paths import SCHEMES, UNUSABLE_KEY
from pipeline.storage.stored_table import StoredTable, batches
from pipeline.storage.table_hashes import Hashes, text_hashes
from pipeline.terminal.units import counted

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
    faults: dict[tuple[str, str], _Fault] = {}
    ids, used, splits = [], set[str](), dict[str, None]()
    for batch in batches(clips):
        for name, expected, wrong in _rules(batch):
            fault = faults.setdefault((name, expected), _Fault())
            fault.add(batch, wrong, name)
        ids.append(text_hashes(batch["id"]))
        used.update(labels_in_use(batch))
        splits.update(dict.fromkeys(pc.unique(batch["split"]).to_pylist()))
    # URIs first: other messages name clips by their ids, which often are their paths.
    _refuse({rule: fault for rule, fault in faults.items() if rule[0] == "uri"}, path)
    _check_ids(clips, np.concatenate(ids), path)
    _check_labels(clips, used, manifest.labels, path)
    for split in splits:
        check_split(split, path)
    _refuse(faults, path)


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
    num_unlabelled = sum(
        pc.sum(pc.equal(pc.list_value_length(batch["labels"]), 0)).as_py()
        for batch in batches(manifest.clips, ["labels"])
    )
    if not num_unlabelled:
        return manifest
    if required and num_unlabelled == num_clips and not manifest.labels:
        raise UserError(
            source,
            f"none of {counted(num_clips, 'clip')} has a label",
            "fill them in, or name the column that holds them with --column labels=NAME",
        )
    have = counted(num_unlabelled, "clip has", "clips have")
    return replace(manifest, notes=(*manifest.notes, f"{have} no label"))


def _rules(clips: pa.Table) -> Iterator[tuple[str, str, pa.ChunkedArray]]:
    """A column, what it must be, and where it is not, one rule after the other."""
    uris = clips["uri"]
    absolute = "an absolute path or s3://bucket/key (or gs://, az://), without file://"
    yield "uri", absolute, pc.invert(pc.match_substring_regex(uris, _URI))
    unprintable = pc.match_substring_regex(uris, "[[:cntrl:]]")
    yield "uri", "without line ends and other control characters", unprintable
    is_remote = pc.match_substring_regex(uris, _BUCKET)
    if pc.any(is_remote).as_py():
        keys = pc.replace_substring_regex(uris, _BUCKET, "")
        unusable = pc.and_(is_remote, pc.match_substring_regex(keys, UNUSABLE_KEY))
        yield "uri", "a key without empty, . and .. segments", unusable
    start_s, end_s = pc.fill_null(clips["start_s"], 0.0), pc.fill_null(clips["end_s"], _MAX_S)
    yield "start_s", "seconds, 0 or more", _outside(start_s, 0.0, _MAX_S)
    is_early = pc.or_(_outside(end_s, 0.0, _MAX_S), pc.less_equal(end_s, start_s))
    yield "end_s", "seconds, above start_s", is_early
    for name in ("fold", "offset_bytes", "size_bytes", "row_group", "row"):
        yield name, "0 or more", pc.less(clips[name], 0)
    for name, other in (("offset_bytes", "size_bytes"), ("row_group", "row")):
        alone = pc.xor(pc.is_null(clips[name]), pc.is_null(clips[other]))
        yield name, f"given together with {other}", alone


class _Fault:
    """How many clips have a wrong value, and the first of them."""

    def __init__(self) -> None:
        self.num_clips = 0
        self.example: tuple[str, object] = ("", None)

    def add(self, clips: pa.Table, wrong: pa.ChunkedArray, name: str) -> None:
        """Count the clips with a wrong value in a column."""
        if not pc.any(wrong).as_py():
            return
        rows = clips.filter(wrong)
        if not self.num_clips:
            self.example = (rows["id"][0].as_py(), rows[name][0].as_py())
        self.num_clips += rows.num_rows


def _refuse(faults: Mapping[tuple[str, str], _Fault], path: str) -> None:
    """Raise for the first rule that is broken; the message shows the first such clip."""
    for (name, expected), fault in faults.items():
        if fault.num_clips:
            clip_id, value = fault.example
            raise UserError(
                path,
                f"{name} must be {expected}",
                f"clip {clip_id!r} has {value!r} ({fault.num_clips} such clips)",
            )


def _check_ids(clips: pa.Table | StoredTable, hashes: Hashes, path: str) -> None:
    """Ids with equal hashes are compared, wherever they are."""
    ordered = np.sort(hashes)
    alike = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    suspects = []
    start = 0
    for batch in batches(clips, ["id"]) if len(alike) else ():
        is_alike = np.isin(hashes[start : start + batch.num_rows], alike)
        start += batch.num_rows
        suspects += batch["id"].filter(pa.array(is_alike)).chunks
    counts = pc.value_counts(pa.chunked_array(suspects, pa.string()))
    repeated = counts.filter(pc.greater(pc.struct_field(counts, "counts"), 1))
    if len(repeated):
        names = ", ".join(str(entry["values"]) for entry in repeated[:3].to_pylist())
        raise UserError(
            path,
            f"{counted(len(repeated), 'duplicate id')}, such as {names}",
            "remove what is listed twice, or give every clip a unique id (in a table, a column id)",
        )
    if text_hashes(pa.array([""]))[0] in hashes and _has_empty_id(clips):
        raise UserError(path, "a clip has an empty id", "give every clip a unique id")


def _has_empty_id(clips: pa.Table | StoredTable) -> bool:
    return any(pc.any(pc.equal(batch["id"], "")).as_py() for batch in batches(clips, ["id"]))


def _check_labels(
    clips: pa.Table | StoredTable, used: set[str], labels: Sequence[str], path: str
) -> None:
    unknown = sorted(used - set(labels))
    if unknown:
        first = next(
            row["id"]
            for batch in batches(clips, ["id", "labels"])
            for row in batch.to_pylist()
            if unknown[0] in row["labels"]
        )
        raise UserError(
            path,
            f"{counted(len(unknown), 'label is', 'labels are')} outside the vocabulary of "
            f"{len(labels)}, such as {unknown[0]!r} of clip {first}",
        )


def _outside(column: pa.ChunkedArray, low: float, high: float) -> pa.ChunkedArray:
    """Where a number is outside `low` to `high`, or NaN."""
    return pc.invert(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))
