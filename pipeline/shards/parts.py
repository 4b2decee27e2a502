"""Part files: the record of a finished shard, whose presence marks the shard as finished.

Each shard has a Parquet file in `_work/parts` with its rows of the index; its metadata holds the
rest. Index, ledger and card are made from the part files alone.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass

import pyarrow as pa

from pipeline import storage
from pipeline.audio.rejects import Reject
from pipeline.shards.plan import FORMAT_VERSION, READ_VERSIONS
from pipeline.shards.settings import STORES, Store
from pipeline.storage.table_hashes import content_hash

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("shard", pa.string()),  # the tar, relative to the data set
        ("offset_bytes", pa.int64()),  # of the float16 [T, F] numbers, or of the FLAC, in the tar
        ("size_bytes", pa.int64()),
        ("xxh3", pa.uint64()),  # of these bytes, see `tar.checksum`
        ("frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("level_dbfs", pa.float32()),  # RMS over the clip; -inf: silence
        ("file_level_dbfs", pa.float32()),  # of all channels, before they were mixed down
        ("repaired", pa.string()),  # what was odd about the file; null: nothing
        ("common", pa.bool_()),  # as in the manifest
        # Of the float16 fbank (for audio, the one it would give), for exact means of any subset.
        ("fbank_sum", pa.float64()),
        ("fbank_sumsq", pa.float64()),
    ]
)
_NUM_CLIPPED = pa.field("num_clipped", pa.int32())  # beyond full scale; where audio is stored
_NEW_COLUMNS = {3: ("xxh3", "file_level_dbfs", "repaired")}
"""Columns by the first format version that has them."""
STAGES = ("fetch", "decode", "fbank", "write")

_METADATA_KEY = b"ast_ray.part"
_CHECKSUM_KEY = b"ast_ray.sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class TarEntry:
    """A finished tar, as listed in the card."""

    name: str
    num_clips: storage.Count
    size_bytes: storage.Count
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """The record of a finished shard."""

    fingerprint: str
    tar: TarEntry | None
    """None if every clip of the shard was rejected: then there is no tar."""
    index: pa.Table
    rejects: tuple[Reject, ...]
    stages_s: dict[str, float]
    """Seconds that the task waited for or worked on each of `STAGES`."""
    fetched_bytes: int
    """Size of the audio that was read."""
    other_rates_hz: dict[str, int] | None = None
    """Sample rate of the file of each clip, by id, where it is not the data set's; None: of an
    older program, which did not write them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """The part file's metadata: all of a `Part` but the index."""

    fingerprint: str
    tar: TarEntry | None
    rejects: tuple[Reject, ...]
    stages_s: dict[str, float]
    fetched_bytes: int
    other_rates_hz: dict[str, int] | None = None


def index_schema(store: Store, format_version: int = FORMAT_VERSION) -> pa.Schema:
    """Columns of the index of a data set that stores fbanks or audio."""
    fields = [*INDEX_SCHEMA, *([_NUM_CLIPPED] if store == "audio" else [])]
    newer = {
        name
        for version, names in _NEW_COLUMNS.items()
        if version > format_version
        for name in names
    }
    return pa.schema([field for field in fields if field.name not in newer])


def work_folder(output: str) -> str:
    """The folder of a data set from which `prepare` resumes."""
    return storage.join(output, "_work")


def part_path(output: str, name: str) -> str:
    """Path of a shard's part file."""
    return storage.join(work_folder(output), "parts", f"{name}.parquet")


def has_parts(output: str) -> bool:
    """Whether any shard is finished."""
    return bool(part_names(output))


def part_fingerprints(output: str) -> dict[str, str]:
    """The fingerprint of each finished shard whose part file is intact, by the file's path."""
    found = {}
    for path in part_names(output):
        with suppress(ValueError, storage.NoFileError):
            found[path] = read_part(path).fingerprint
    return found


def part_names(output: str) -> dict[str, str]:
    """The name of each finished shard, by the path of its part file."""
    paths = storage.list_files(storage.join(work_folder(output), "parts"))
    return {
        path: path.rpartition("/")[2].removesuffix(".parquet")
        for path in paths
        if path.endswith(".parquet")  # no leftovers of a killed write
    }


def read_part(path: str) -> Part:
    """Read a part file written by `build_shard`; ValueError if it is damaged."""
    table = storage.read_table(path)
    stored = table.schema.metadata or {}
    text = stored.get(_METADATA_KEY, b"")
    schemas = [index_schema(store, version) for store in STORES for version in READ_VERSIONS]
    # Only such columns have a checksum.
    if table.schema not in schemas or stored.get(_CHECKSUM_KEY) != _checksum(text, table):
        raise ValueError(f"{path}: does not match the checksum it contains")
    metadata = storage.parse_document(text, _Metadata)
    return Part(
        fingerprint=metadata.fingerprint,
        tar=metadata.tar,
        index=table.replace_schema_metadata(None),
        rejects=metadata.rejects,
        stages_s=metadata.stages_s,
        fetched_bytes=metadata.fetched_bytes,
        other_rates_hz=metadata.other_rates_hz,
    )


def write_part(path: str, part: Part) -> None:
    """Put a part file in place, which marks the shard as done."""
    document = _Metadata(
        fingerprint=part.fingerprint,
        tar=part.tar,
        rejects=part.rejects,
        stages_s=part.stages_s,
        fetched_bytes=part.fetched_bytes,
        other_rates_hz=part.other_rates_hz,
    )
    text = json.dumps(asdict(document)).encode()
    metadata = {_METADATA_KEY: text, _CHECKSUM_KEY: _checksum(text, part.index)}
    storage.write_table(path, part.index.replace_schema_metadata(metadata))


def _checksum(text: bytes, index: pa.Table) -> bytes:
    return hashlib.sha256(text + content_hash(index).encode()).hexdigest().encode()
