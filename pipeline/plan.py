"""Which clip goes into which shard: a pure function of the manifest and the settings.

Within a split the clips are ordered by a hash of their ids, so that a shard holds a fair mix of
classes, and cut into shards of nearly equal size. The plan is written once, one Parquet row group
a shard, and each task reads only its own row group.
"""

import hashlib
import io
import json
import re
from dataclasses import asdict, dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.decode import DecodeSettings
from pipeline.errors import UserError
from pipeline.fbank import FbankSettings
from pipeline.manifest import Manifest

FORMAT_VERSION = 1
"""Changes whenever the same manifest and settings would give other tars, index or card."""

_MIN_SHARDS = 16
_MIN_CLIPS_PER_SHARD = 25


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """What decides the bytes of a prepared data set."""

    fbank: FbankSettings = field(default_factory=FbankSettings)
    """The features."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """Limits on the audio."""
    clips_per_shard: int = 512
    """Most clips in a shard; small data sets get smaller shards, so that 16 can run in parallel."""

    def __post_init__(self) -> None:
        if not 1 <= self.clips_per_shard <= 100_000:
            raise ValueError(
                f"clips_per_shard: must be from 1 to 100000, got {self.clips_per_shard}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """One task: the shard's name and which row group of the plan it builds."""

    name: str
    row_group: int
    num_clips: int
    fingerprint: str
    """Hash of the shard's clips and of the settings: a finished shard with another is not this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All tasks, and the clips in the order of the tasks."""

    specs: tuple[ShardSpec, ...]
    clips: pa.Table
    fingerprint: str
    """Hash of everything that decides the data set."""

    def write(self, path: str) -> None:
        """Write the clips, one row group a shard."""
        buffer = io.BytesIO()
        start = 0
        with pq.ParquetWriter(buffer, self.clips.schema, compression="zstd") as writer:
            for spec in self.specs:
                rows = self.clips.slice(start, spec.num_clips)
                writer.write_table(rows, row_group_size=max(1, spec.num_clips))
                start += spec.num_clips
        storage.write_bytes(path, buffer.getvalue())


def read_shard_clips(path: str, row_group: int) -> pa.Table:
    """The clips of one shard, from the plan."""
    with storage.open_binary(path) as file:
        return pq.ParquetFile(file).read_row_group(row_group)


def make_plan(manifest: Manifest, settings: PrepareSettings) -> Plan:
    """Assign every clip of the manifest to a shard.

    Raises:
        UserError: a split's name cannot be part of a file name.
    """
    base = json.dumps([FORMAT_VERSION, asdict(settings), manifest.labels])
    specs: list[ShardSpec] = []
    parts: list[pa.Table] = []
    for split in sorted(pc.unique(manifest.clips["split"]).to_pylist()):
        _check_split(split)
        clips = _in_hash_order(manifest.clips.filter(pc.equal(manifest.clips["split"], split)))
        start = 0
        for number, num_clips in enumerate(shard_sizes(clips.num_rows, settings.clips_per_shard)):
            part = clips.slice(start, num_clips)
            spec = ShardSpec(
                name=f"{split}-{number:05d}",
                row_group=len(specs),
                num_clips=num_clips,
                fingerprint=_sha256(base, json.dumps(part.to_pylist())),
            )
            specs.append(spec)
            parts.append(part)
            start += num_clips
    fingerprint = _sha256(base, *[spec.fingerprint for spec in specs])
    return Plan(specs=tuple(specs), clips=pa.concat_tables(parts), fingerprint=fingerprint)


def shard_sizes(num_clips: int, clips_per_shard: int) -> list[int]:
    """Clips in each shard: at most `clips_per_shard`, differing by at most one.

    A small data set is cut finer, into up to 16 shards of at least 25 clips: the number must not
    depend on the CPUs at hand, and one shard would be built by one of them.
    """
    num_shards = max(
        -(-num_clips // clips_per_shard), min(_MIN_SHARDS, num_clips // _MIN_CLIPS_PER_SHARD), 1
    )
    return [num_clips // num_shards + (i < num_clips % num_shards) for i in range(num_shards)]


def _in_hash_order(clips: pa.Table) -> pa.Table:
    digests = [
        hashlib.blake2b(clip_id.encode(), digest_size=16).digest()
        for clip_id in clips["id"].to_pylist()
    ]
    return clips.take(pa.array(sorted(range(len(digests)), key=digests.__getitem__)))


def _check_split(split: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", split):
        raise UserError(
            f"split {split!r}: shards are named after their split, so it may hold only letters, "
            f"digits, '-' and '_'; rename it in the manifest"
        )


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
