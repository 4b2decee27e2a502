"""Build one shard: the plan's clips in, a tar and its part file out. Runs without Ray.

Steps: read the shard's row group of the plan; fetch audio ahead of the computation; decode; fbank;
append to the tar. Then the tar is put in place, and last the part file, which marks the shard as
done and holds its rows of the index, its rejects and the tar's checksum. A restart keeps shards
that have a part file and rebuilds all others.

A decoder that crashes or hangs on a clip takes down the whole process, and the shard is retried. A
marker records the first try; the second decodes every clip in a separate process, where such a clip
is only rejected. Intact files pay nothing for broken ones.
"""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline import storage
from pipeline.audio.decode import Decoded, decode_audio, level_dbfs
from pipeline.audio.rejects import Reject, RejectError
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.stored_audio import encode_flac, to_16_bits, to_waveform
from pipeline.fbank import fbank
from pipeline.manifest.manifest import Clip, to_clips
from pipeline.shards.fetch import fetch_ahead, fetch_reject
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import (
    STAGES,
    Part,
    TarEntry,
    index_schema,
    part_path,
    write_part,
)
from pipeline.shards.plan import ShardSpec, read_shard_clips
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.tar import ShardWriter, metadata

MAX_DECODE_S = 60.0
"""Longest time for decoding a clip; a process that takes longer is ended."""

Decode = Callable[..., Decoded]


class Stages:
    """A clock that sums the seconds spent in each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


def build_shard(spec: ShardSpec, job: BuildJob) -> Part:
    """Build a shard and put it in place.

    Raises:
        UserError: the storage as a whole refuses or does not answer; faults of single files only
            reject clips.
    """
    job = replace(job, settings=spec.settings(job.settings))
    # More threads would only compete with other tasks, and change the rounding.
    torch.set_num_threads(1)
    marker = storage.join(job.work, "started", spec.name)
    was_tried = storage.exists(marker)
    storage.write_bytes(marker, b"")
    name = f"shards/{spec.name}.tar"
    with (
        _sandbox() if was_tried else nullcontext(_watched) as decode,
        storage.new_file(storage.join(job.output, name)) as file,
    ):
        part = _build(spec, job, decode, ShardWriter(file), name)
        if part.tar:
            with Stages(part.stages_s).stage("write"):
                file.commit()
    write_part(part_path(job.output, spec.name), part)
    storage.remove(marker)
    return part


def _build(spec: ShardSpec, job: BuildJob, decode: Decode, writer: ShardWriter, name: str) -> Part:
    """Write all clips of a shard; `name` is the tar's, relative to the data set."""
    clock = Stages(dict.fromkeys(STAGES, 0.0))
    clips = to_clips(read_shard_clips(job.work, spec))
    rows: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    fetched_bytes = 0
    max_bytes = job.settings.decode.max_file_bytes
    with closing(fetch_ahead(clips, job.reads_ahead, max_bytes)) as contents:
        for clip in clips:
            with clock.stage("fetch"):
                content = next(contents)
            try:
                if isinstance(content, Exception):
                    raise fetch_reject(content, clip.uri) from content
                fetched_bytes += len(content)
                row = build_clip(clip, content, decode, writer, job.settings, clock)
                rows.append({**row, "shard": name})
            except RejectError as error:
                rejects.append(
                    Reject(id=clip.id, uri=clip.uri, stage=error.stage, reason=error.reason)
                )
    with clock.stage("write"):
        writer.finish()
    tar = TarEntry(
        name=name,
        num_clips=writer.num_clips,
        size_bytes=writer.size_bytes,
        sha256=writer.sha256,
    )
    rate_hz = job.settings.fbank.sample_rate_hz
    return Part(
        fingerprint=spec.fingerprint,
        tar=tar if tar.num_clips else None,
        index=pa.Table.from_pylist(rows, schema=index_schema(job.settings.store)),
        rejects=tuple(rejects),
        stages_s=clock.seconds,
        fetched_bytes=fetched_bytes,
        other_rates_hz={
            row["id"]: row["file_rate_hz"] for row in rows if row["file_rate_hz"] != rate_hz
        },
    )


@contextmanager
def _sandbox() -> Iterator[Decode]:
    with DecoderProcess(timeout_s=MAX_DECODE_S) as decoder:
        yield decoder.decode_audio


def _watched(*arguments: Any, **options: Any) -> Decoded:
    """Decode in this process, which SIGALRM ends if it hangs in a library."""
    # The kernel's timer needs no thread, nor the interpreter, which a library may block.
    before = signal.setitimer(signal.ITIMER_REAL, MAX_DECODE_S)
    try:
        return decode_audio(*arguments, **options)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def build_clip(
    clip: Clip,
    content: bytes,
    decode: Decode,
    writer: ShardWriter,
    settings: PrepareSettings,
    clock: Stages,
) -> dict[str, Any]:
    """Append a clip's fbank, or its audio, to the tar and return its row of the index.

    Raises:
        RejectError: the clip cannot be used.
    """
    with clock.stage("decode"):
        decoded = decode(
            content,
            settings.decode,
            sample_rate_hz=settings.fbank.sample_rate_hz,
            start_s=clip.start_s,
            end_s=clip.end_s,
        )
        waveform = decoded.samples
        samples, num_clipped = None, 0
        if settings.store == "audio":
            samples, num_clipped = to_16_bits(waveform)
            waveform = to_waveform(samples)
    with clock.stage("fbank"):
        numbers = _fbank16(waveform, settings)
        # Exact in float32: a float16 has 11 significant bits, its square 22.
        exact = numbers.float()
        power = float(np.vdot(waveform, waveform)) / len(waveform)
    with clock.stage("write"):
        rate_hz = settings.fbank.sample_rate_hz
        duration_s = len(waveform) / rate_hz
        stored = numbers.numpy() if samples is None else encode_flac(samples, rate_hz)
        byte_range = writer.add(clip.id, metadata(clip, duration_s), stored)
    return {
        "id": clip.id,
        "uri": clip.uri,
        "split": clip.split,
        "fold": clip.fold,
        "labels": clip.labels,
        "common": clip.common,
        "offset_bytes": byte_range.offset_bytes,
        "size_bytes": byte_range.size_bytes,
        "xxh3": byte_range.xxh3,
        "frames": len(numbers),
        "duration_s": duration_s,
        "num_clipped": num_clipped,
        "level_dbfs": level_dbfs(power),
        "file_level_dbfs": decoded.file_level_dbfs,
        "file_rate_hz": decoded.file_rate_hz,
        "repaired": decoded.repaired,
        "fbank_sum": exact.sum(dtype=torch.float64).item(),
        "fbank_sumsq": exact.square_().sum(dtype=torch.float64).item(),
    }


def _fbank16(waveform: npt.NDArray[np.float32], settings: PrepareSettings) -> torch.Tensor:
    """`[T, F]` float16 log-mel of a waveform."""
    if settings.fbank.num_frames(len(waveform)) == 0:
        raise RejectError("fbank", f"shorter than one {settings.fbank.frame_length_ms} ms frame")
    return fbank(torch.from_numpy(waveform), settings.fbank).half()
