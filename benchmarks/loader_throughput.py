"""Clips per second from shards to ready batches: this loader and webdataset's stream.

Steps: write 16 tars of 998 x 128 clips of noise (2 GB), as `prepare` does, and as many of 10 s of
audio (1.5 GB); read them once into the page cache. On one core, in turns: stock webdataset reads
the tars sequentially, decodes and stacks; the loader reads single clips in random order. Both end
with float32 batches. Then separate processes, one per rank, read the same tars from a local S3
server with 20 ms of latency (see `s3_server`), which runs on the same cores. Out: tables.

    .venv/bin/python benchmarks/loader_throughput.py
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import webdataset
from s3_server import serve_s3
from torch import Tensor

from pipeline import storage
from pipeline.audio.stored_audio import encode_flac
from pipeline.fbank_settings import FbankSettings
from pipeline.shards.tar import Fbank, ShardWriter
from trainer.data.batch import Batch
from trainer.data.clip_columns import ClipIds, ClipLabels, ClipShards
from trainer.data.clips import ClipSet, StoredAudio
from trainer.data.epoch_plan import EpochPlan, plan_epoch
from trainer.data.loader import Loader
from trainer.data.settings import AugmentSettings, LoaderSettings

NUM_FRAMES, NUM_MELS, INPUT_FRAMES = 998, 128, 1024
NUM_SAMPLES = 160_000
NUM_SHARDS = 16
BATCH_SIZE = 48
PLAIN = AugmentSettings(mixup_share=0.0)

Batches = Callable[[], Iterable[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8192)
    parser.add_argument("--processes", type=int, default=2, help="processes that read from S3")
    parser.add_argument("--latency-ms", type=float, default=20.0, help="added to each request")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best is shown")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, serve_s3(Path(folder)) as latency_s:
        rng = np.random.default_rng(0)
        fbanks = rng.normal(-4, 4, (64, NUM_FRAMES, NUM_MELS)).astype(np.float16)
        clips = make_shards(f"{folder}/bucket", arguments.clips, list(fbanks))
        # Loud enough for the 180 KB per clip that ESC-10 takes.
        waveforms = rng.normal(0, 120, (64, NUM_SAMPLES)).astype(np.int16)
        flacs = [encode_flac(waveform, FbankSettings().sample_rate_hz) for waveform in waveforms]
        audio = make_shards(f"{folder}/audio", arguments.clips, flacs)
        print(f"{len(clips)} clips in {NUM_SHARDS} tars, best of {arguments.rounds}, {machine()}")
        compare_local(clips, audio, arguments.rounds)
        latency_s.value = arguments.latency_ms / 1000
        remote = move(clips, f"{folder}/bucket", "s3://bucket")
        rate, cpu_ms = max(epochs_from_s3(remote, arguments.rounds, arguments.processes))
        print(
            f"from S3 with {arguments.latency_ms:g} ms, {arguments.processes} processes: "
            f"{rate:.0f} clips/s, {cpu_ms:.2f} ms of their CPU time a clip"
        )
        print(f"load average {os.getloadavg()[0]:.1f}")


def make_shards(folder: str, num_clips: int, stored: Sequence[Fbank | bytes]) -> ClipSet:
    """Write tars that repeat the same few clips; returns the set of their clips."""
    is_audio = isinstance(stored[0], bytes)
    num_samples = np.full(num_clips, NUM_SAMPLES)
    shards, offsets, sizes, checksums = [], [], [], []
    for number in range(NUM_SHARDS):
        path = storage.join(folder, f"train-{number:05d}.tar")
        with storage.new_file(path) as file:
            writer = ShardWriter(file)
            for clip in range(number, num_clips, NUM_SHARDS):
                placed = writer.add(
                    f"{clip:06d}", {"labels": ["noise"]}, stored[clip % len(stored)]
                )
                shards.append(path)
                offsets.append(placed.offset_bytes)
                sizes.append(placed.size_bytes)
                checksums.append(placed.xxh3)
            writer.finish()
            file.commit()
    return ClipSet(
        name="train",
        ids=ClipIds.of([str(number) for number in range(num_clips)]),
        shards=ClipShards.of(shards),
        offset_bytes=np.array(offsets),
        size_bytes=np.array(sizes),
        xxh3=np.array(checksums, dtype=np.uint64),
        label_indices=ClipLabels.of([[0]] * num_clips),
        common=np.zeros(num_clips, dtype=np.bool_),
        labels=["noise"],
        num_mels=NUM_MELS,
        audio=StoredAudio(fbank=FbankSettings(), num_samples=num_samples) if is_audio else None,
    )


def move(clips: ClipSet, old: str, new: str) -> ClipSet:
    """The same clips under another path."""
    fields = {name: getattr(clips, name) for name in ClipSet.__slots__}
    paths = [path.replace(old, new) for path in clips.shards.paths]
    return ClipSet(**fields | {"shards": clips.shards.moved(paths)})


def compare_local(clips: ClipSet, audio: ClipSet, rounds: int) -> None:
    """Print the rates on one core, reading from the page cache."""
    sides: dict[str, Batches] = {
        "webdataset, from front to back": lambda: stream(clips),
        "loader, random order": lambda: (batch.x.float() for batch in read(clips)),
        "the same, left in float16": lambda: (batch.x for batch in read(clips)),
        "audio decoded, left in int16": lambda: (batch.x for batch in read(audio)),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, batches in sides.items():
            rates[name].append(clips_per_cpu_s(batches(), len(clips)))
    # The first round reads into the page cache.
    best = {name: max(round_rates[1:]) for name, round_rates in rates.items()}
    stock = best["webdataset, from front to back"]
    for name, rate in best.items():
        print(f"{name:34}{rate:8.0f} clips/s a core{rate / stock:8.1f} times")


def stream(clips: ClipSet) -> Iterator[Tensor]:
    """Batches of stock webdataset, padded to the input of AST, float32."""
    paths = sorted(clips.shards.paths)
    stored = webdataset.WebDataset(paths, shardshuffle=False).decode().to_tuple("npy")
    for (fbanks,) in stored.batched(BATCH_SIZE):
        x = torch.zeros(len(fbanks), INPUT_FRAMES, NUM_MELS)
        x[:, :NUM_FRAMES] = torch.from_numpy(np.stack(fbanks))
        yield x


def read(clips: ClipSet) -> Iterator[Batch]:
    """Batches of an epoch, without a cache."""
    return make_loader(clips).training_batches(make_plan(clips), PLAIN)


def make_loader(clips: ClipSet) -> Loader:
    return Loader(clips, LoaderSettings(threads=1, cache_mb=0), num_frames=INPUT_FRAMES)


def make_plan(clips: ClipSet, epoch: int = 1, rank: int = 0, world_size: int = 1) -> EpochPlan:
    return plan_epoch(
        len(clips),
        None,
        seed=0,
        epoch=epoch,
        batch_size=BATCH_SIZE * world_size,
        rank=rank,
        world_size=world_size,
    )


def clips_per_cpu_s(batches: Iterable[Tensor], num_clips: int) -> float:
    start = time.process_time()
    assert sum(map(len, batches)) == num_clips
    return num_clips / (time.process_time() - start)


def epochs_from_s3(
    clips: ClipSet, num_epochs: int, num_processes: int
) -> list[tuple[float, float]]:
    """For each epoch: clips per second of all processes, and ms of their CPU time per clip."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_processes) as pool:
        tasks = [(clips, rank, num_processes, num_epochs) for rank in range(num_processes)]
        ranks = pool.starmap(read_rank, tasks, chunksize=1)
    rates = []
    for epoch in zip(*ranks, strict=True):
        starts, ends, counts, cpu_s = zip(*epoch, strict=True)
        start, end = min(starts), max(ends)
        num_read = sum(counts)
        cpu_ms = 1000 * sum(cpu_s) / num_read
        rates.append((num_read / (end - start), cpu_ms))
    return rates


def read_rank(
    clips: ClipSet, rank: int, world_size: int, num_epochs: int
) -> list[tuple[float, float, int, float]]:
    """For each epoch of a rank: its start and end, clips read, and seconds of CPU time."""
    torch.set_num_threads(1)
    loader, epochs = make_loader(clips), []
    for epoch in range(num_epochs):
        # A clock that all processes share.
        start, start_cpu_s = time.monotonic(), time.process_time()
        batches = loader.training_batches(make_plan(clips, epoch, rank, world_size), PLAIN)
        num_read = sum(len(batch.x.float()) for batch in batches)
        epochs.append((start, time.monotonic(), num_read, time.process_time() - start_cpu_s))
    return epochs


def machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
