"""The recordings of a source, and how they are dealt into parts.

In: an audio file, a folder or prefix, a container (Parquet, tar, HDF5), or a manifest. Out: the
recordings in the order of their ids, without labels; parts of neighbours, each of which one worker
tags.
"""

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.files import is_manifest, read_manifest
from pipeline.manifest.layouts.listing import CONTAINER_SUFFIXES
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.manifest import SCHEMA, Clip, from_columns, to_clips
from pipeline.storage.table_hashes import content_hash

_PART_RECORDINGS = 64
_PART_BYTES = 64_000_000
"""A part is closed by a recording that reaches this."""
_CLIP_COLUMNS = ("offset_bytes", "size_bytes", "row_group", "row")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recordings:
    """What a source holds."""

    clips: pa.Table
    """Of the manifest's schema, ordered by id."""
    sizes_bytes: pa.ChunkedArray
    """Of each file; null: unknown."""
    notes: tuple[str, ...] = ()
    """What was left out, a line each."""

    @property
    def fingerprint(self) -> str:
        """A hash of ids, paths and sizes."""
        sizes = pa.table({"size_bytes": self.sizes_bytes})
        return hashlib.sha256((content_hash(self.clips) + content_hash(sizes)).encode()).hexdigest()

    @property
    def total_bytes(self) -> int:
        """Of all files whose size is known."""
        return sum(filter(None, self.sizes_bytes.to_pylist()))

    def __len__(self) -> int:
        return int(self.clips.num_rows)

    def uris(self, num: int) -> list[str]:
        """Paths of the first so many."""
        paths: list[str] = self.clips["uri"].slice(0, num).to_pylist()
        return paths

    def clips_of(self, part: "Part | None" = None) -> list[Clip]:
        """The recordings of a part; None: all of them."""
        clips = self.clips if part is None else self.clips.slice(part.first, part.num)
        return to_clips(clips)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Neighbouring recordings, which one worker tags."""

    number: int
    first: int
    """Index of its first recording."""
    num: int


def list_recordings(source: str) -> Recordings:
    """List the audio of a source.

    Raises:
        UserError: there is none, or two recordings have one id.
    """
    storage.check_bucket(source)
    suffix = PurePosixPath(source).suffix.lower()
    if suffix == ".parquet" and is_manifest(source):
        clips = read_manifest(source).clips.select(SCHEMA.names)
        sizes = pa.chunked_array([pa.nulls(clips.num_rows, pa.int64())])
        return _ordered(clips, sizes, ())
    if suffix not in CONTAINER_SUFFIXES and storage.exists(source):
        return _one_file(source)
    listing, notes = list_audio(source)
    if not listing.num_rows:
        raise UserError(source, "no audio there", "; ".join(notes))
    listing = listing.combine_chunks()
    columns = {name: listing[name] for name in ("uri", *_CLIP_COLUMNS)}
    labels = pa.array([[]] * listing.num_rows, pa.list_(pa.string()))
    manifest = from_columns({"id": listing["name"], "labels": labels, **columns}, ())
    sizes = pa.chunked_array([listing["file_size_bytes"].combine_chunks()])
    return _ordered(manifest.clips, sizes, tuple(notes))


def deal_parts(recordings: Recordings) -> list[Part]:
    """Parts of neighbours, in order."""
    parts: list[Part] = []
    first, num_bytes = 0, 0
    sizes = recordings.sizes_bytes.to_pylist()
    for index, size_bytes in enumerate(sizes):
        num_bytes += size_bytes or _PART_BYTES // _PART_RECORDINGS
        num = index + 1 - first
        if num == _PART_RECORDINGS or num_bytes >= _PART_BYTES or index + 1 == len(sizes):
            parts.append(Part(number=len(parts), first=first, num=num))
            first, num_bytes = index + 1, 0
    return parts


def _one_file(source: str) -> Recordings:
    name = source.rpartition("/")[2]
    clips = from_columns({"id": [name], "uri": [source], "labels": [[]]}, ()).clips
    with storage.open_binary(source) as file:
        size_bytes = file.seek(0, 2)
    return Recordings(clips=clips, sizes_bytes=pa.chunked_array([[size_bytes]]))


def _ordered(clips: pa.Table, sizes: pa.ChunkedArray, notes: tuple[str, ...]) -> Recordings:
    table = clips.append_column("file_size_bytes", sizes).sort_by("id").combine_chunks()
    ids = table["id"].to_pylist()
    for one, following in itertools.pairwise(ids):
        if one == following:
            raise UserError(str(one), "two recordings of the source have this name")
    return Recordings(
        clips=table.drop_columns(["file_size_bytes"]),
        sizes_bytes=table["file_size_bytes"],
        notes=notes,
    )
