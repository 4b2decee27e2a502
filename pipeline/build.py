"""Build one shard: the plan's clips in, a tar and its part file out. Runs without Ray.

Steps: read the shard's row group of the plan; fetch files ahead of the computation; decode; fbank;
append to the tar. Then the tar is put in place, and last the part file, which says that the shard
is done: its rows of the index, its rejects, the tar's checksum. A restart keeps shards whose part
file is there and builds all others anew.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import storage
from pipeline.decode import decode_audio
from pipeline.errors import UserError
from pipeline.fbank import fbank
from pipeline.plan import PrepareSettings, ShardSpec, read_shard_clips
from pipeline.rejects import Reject, RejectError
from pipeline.shards import Fbank, ShardWriter

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("uri", pa.string()),
        ("split", pa.string()),
        ("fold", pa.int32()),
        ("labels", pa.list_(pa.string())),
        ("shard", pa.string()),  # the tar, relative to the data set
        ("offset_bytes", pa.int64()),  # of the float16 [T, F] numbers in the tar
        ("size_bytes", pa.int64()),
        ("frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("fbank_sum", pa.float64()),  # of the stored numbers, for exact means of any subset
        ("fbank_sumsq", pa.float64()),
    ]
)
STAGES = ("fetch", "decode", "fbank", "write")

_METADATA_KEY = b"ast_ray.part"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildJob:
    """What all shards of a data set have in common."""

    output: str
    """The data set's folder."""
    plan_path: str
    settings: PrepareSettings
    reads_ahead: int = 8
    """Files fetched at once, ahead of the computation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarFacts:
    """A finished tar, as the card names it."""

    name: str
    num_clips: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What is known of a finished shard."""

    fingerprint: str
    tar: TarFacts | None
    """None when every clip of the shard was rejected: there is no tar then."""
    index: pa.Table
    rejects: tuple[Reject, ...]
    stages_s: dict[str, float]
    """Seconds the task spent waiting for or working on each of `STAGES`."""


def part_path(output: str, name: str) -> str:
    """Where a shard's part file stands."""
    return storage.join(output, "_work", "parts", f"{name}.parquet")


def build_shard(spec: ShardSpec, job: BuildJob) -> Part:
    """Build a shard and put it in place.

    Raises:
        UserError: the storage as a whole refuses or does not answer; single files never raise.
    """
    # More threads would only fight with the tasks beside this one, and change the rounding.
    torch.set_num_threads(1)
    clock = _Stages()
    clips = read_shard_clips(job.plan_path, spec.row_group).to_pylist()
    writer = ShardWriter()
    tar_name = f"shards/{spec.name}.tar"
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    uris = [clip["uri"] for clip in clips]
    with closing(storage.read_ahead(uris, job.reads_ahead)) as contents:
        for clip in clips:
            try:
                row = _build_clip(clip, contents, writer, job, clock)
                rows.append({**row, "shard": tar_name})
            except RejectError as error:
                rejects.append(
                    Reject(id=clip["id"], uri=clip["uri"], stage=error.stage, reason=error.reason)
                )
    with clock.stage("write"):
        # Stopped between the new tar and its part file, an earlier part would vouch for this tar.
        storage.remove(part_path(job.output, spec.name))
        tar = _put_tar(writer, job.output, tar_name)
    part = Part(
        fingerprint=spec.fingerprint,
        tar=tar,
        index=pa.Table.from_pylist(rows, schema=INDEX_SCHEMA),
        rejects=tuple(rejects),
        stages_s=clock.seconds,
    )
    _write_part(part_path(job.output, spec.name), part)
    return part


def read_part(path: str) -> Part:
    """A part file, as `build_shard` wrote it."""
    table = storage.read_table(path)
    document = json.loads(table.schema.metadata[_METADATA_KEY])
    return Part(
        fingerprint=document["fingerprint"],
        tar=TarFacts(**document["tar"]) if document["tar"] else None,
        index=table.replace_schema_metadata(None),
        rejects=tuple(Reject(**row) for row in document["rejects"]),
        stages_s=document["stages_s"],
    )


def _write_part(path: str, part: Part) -> None:
    document = {
        "fingerprint": part.fingerprint,
        "tar": asdict(part.tar) if part.tar else None,
        "rejects": [asdict(reject) for reject in part.rejects],
        "stages_s": part.stages_s,
    }
    metadata = {_METADATA_KEY: json.dumps(document).encode()}
    storage.write_table(path, part.index.replace_schema_metadata(metadata))


def _build_clip(
    clip: dict[str, Any],
    contents: Iterator[bytes | Exception],
    writer: ShardWriter,
    job: BuildJob,
    clock: "_Stages",
) -> dict[str, Any]:
    """Take the next file's content, append its fbank to the tar and return its row of the index."""
    with clock.stage("fetch"):
        data = _fetched(next(contents), clip["uri"])
    with clock.stage("decode"):
        waveform = decode_audio(
            data,
            job.settings.decode,
            sample_rate_hz=job.settings.fbank.sample_rate_hz,
            start_s=clip["start_s"],
            end_s=clip["end_s"],
        )
    with clock.stage("fbank"):
        numbers = _fbank16(waveform, job.settings)
        exact = numbers.astype(np.float64).ravel()
    with clock.stage("write"):
        facts = {name: clip[name] for name in ("labels", "split", "fold")}
        duration_s = len(waveform) / job.settings.fbank.sample_rate_hz
        placed = writer.add(clip["id"], {**facts, "duration_s": duration_s}, numbers)
    return {
        **{name: clip[name] for name in ("id", "uri", "split", "fold", "labels")},
        **asdict(placed),
        "frames": len(numbers),
        "duration_s": duration_s,
        "fbank_sum": float(exact.sum()),
        # Not `exact @ exact`: its rounding depends on the threads that BLAS has.
        "fbank_sumsq": float(np.square(exact).sum()),
    }


def _fetched(content: bytes | Exception, uri: str) -> bytes:
    if isinstance(content, bytes):
        return content
    reason = storage.one_file_fault(content)
    if reason is not None:
        raise RejectError("fetch", reason) from content
    explained = storage.explain(content) or f"{type(content).__name__}: {content}"
    raise UserError(f"{uri}: cannot be read: {explained}. Run the same command again to go on")


def _fbank16(waveform: np.ndarray[Any, np.dtype[np.float32]], settings: PrepareSettings) -> Fbank:
    """`[T, F]` float16 log-mel of a waveform."""
    if settings.fbank.num_frames(len(waveform)) == 0:
        raise RejectError("fbank", f"shorter than one {settings.fbank.frame_length_ms} ms frame")
    numbers: Fbank = fbank(torch.from_numpy(waveform), settings.fbank).to(torch.float16).numpy()
    if not np.isfinite(numbers).all():
        raise RejectError("fbank", "levels too high for the fbank to be finite")
    return numbers


def _put_tar(writer: ShardWriter, output: str, name: str) -> TarFacts | None:
    if writer.num_clips == 0:
        return None
    data = writer.finish()
    storage.with_retries(storage.write_bytes, storage.join(output, name), data)
    return TarFacts(
        name=name,
        num_clips=writer.num_clips,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


class _Stages:
    """Adds up the seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
