"""Clips per second of `prepare` and of two plain loops over the same files, in one run.

In: a folder of audio, such as ESC-50's `audio/`. Steps: cut it into 10 s FLAC files of 16 kHz, like
AudioSet's clips; repeat them in a manifest up to the number of clips. Time what most scripts do
(soundfile, `torchaudio.compliance.kaldi.fbank`, `np.save`, webdataset's `TarWriter`) in one process
per CPU; the functions of `prepare` in a plain loop, without Ray, over a few clips in one process
and over all in one process per CPU; `prepare` from starting Ray to the finished card; and the first
loop again. Out: a table, and the memory of Ray's workers after the first thousand clips and at the
end.

    .venv/bin/python benchmarks/prepare_throughput.py AUDIO_FOLDER --clips 20000
"""

import argparse
import io
import multiprocessing
import os
import platform
import re
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import webdataset
from fbank_throughput import reference

from cluster.session import connect
from pipeline.dataset.prepare import prepare
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.plan import make_plan, write_plan
from pipeline.shards.settings import PrepareSettings

RATE_HZ = 16_000
CLIP_S = 10
NUM_FILES = 200


LOOP_CLIPS = 5_120
"""Clips of the loop without Ray: ten shards."""
EARLY_CLIPS = 1_024
CLIPS_PER_SHARD = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of audio files")
    parser.add_argument("--clips", type=int, default=20_000, help="clips in the manifest")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs for both sides")
    arguments = parser.parse_args()
    num_cpus = arguments.cpus
    with tempfile.TemporaryDirectory() as folder:
        files = make_clips(arguments.audio, Path(folder))
        paths = [str(files[i % len(files)]) for i in range(arguments.clips)]
        print(f"{len(paths)} clips of {CLIP_S} s ({len(files)} different), {describe_machine()}")
        print(f"{'':44}{'clips':>8}{'seconds':>10}{'clips/s':>10}")
        script = show(
            f"soundfile, torchaudio, TarWriter, {num_cpus} processes",
            len(paths),
            time_script(paths, num_cpus, folder),
        )
        loops = [show_loop(paths, folder)]
        together = show(
            f"prepare's functions in a loop, {num_cpus} processes",
            len(paths),
            time_loops(paths, num_cpus, folder),
        )
        with MemoryWatch(Path(folder, "dataset", "_work", "parts")) as memory:
            whole = show(
                f"prepare, {num_cpus} CPUs, Ray's start included",
                len(paths),
                time_prepare(paths, num_cpus, folder),
            )
        loops.append(show_loop(paths, folder))
    print(f"prepare / script                 {whole / script:.2f}")
    print(f"prepare / ({num_cpus} x loop)              {whole / num_cpus / np.mean(loops):.2f}")
    print(f"prepare / loops of {num_cpus} processes    {whole / together:.2f}")
    print(f"largest worker, 1,000 clips done {memory.early_bytes / 1e6:.0f} MB")
    print(f"largest worker, all the time     {memory.peak_bytes / 1e6:.0f} MB")


def show(name: str, num_clips: int, seconds: float) -> float:
    """Print a row; returns clips per second."""
    print(f"{name:44}{num_clips:8}{seconds:10.1f}{num_clips / seconds:10.1f}", flush=True)
    return num_clips / seconds


def show_loop(paths: list[str], folder: str) -> float:
    first_paths = paths[:LOOP_CLIPS]
    name = "prepare's functions in a loop, 1 process"
    return show(name, len(first_paths), time_loop(first_paths, f"{folder}/loop"))


def make_clips(source: Path, folder: Path) -> list[Path]:
    """Write up to `NUM_FILES` FLAC files of `CLIP_S` seconds, cut from the source in order."""
    samples: list[np.ndarray] = []
    files: list[Path] = []
    for path in sorted(source.iterdir()):
        audio, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        samples.append(soxr.resample(audio.mean(axis=1), rate_hz, RATE_HZ))
        joined = np.concatenate(samples)
        if len(joined) >= CLIP_S * RATE_HZ:
            target = folder / f"{len(files):05d}.flac"
            soundfile.write(target, joined[: CLIP_S * RATE_HZ], RATE_HZ)
            files.append(target)
            samples = []
        if len(files) == NUM_FILES:
            break
    return files


def time_script(paths: list[str], num_processes: int, folder: str) -> float:
    """Seconds of the usual script, including the start of its processes."""
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        tasks = [(paths[i::num_processes], f"{folder}/{i}") for i in range(num_processes)]
        pool.starmap(script, tasks)
    seconds = time.monotonic() - start
    for number in range(num_processes):
        shutil.rmtree(f"{folder}/{number}")
    return seconds


def script(paths: list[str], folder: str) -> None:
    """The usual script: read audio, compute fbanks, save them in tars."""
    torch.set_num_threads(1)
    Path(folder).mkdir()
    for first in range(0, len(paths), CLIPS_PER_SHARD):
        with webdataset.TarWriter(f"{folder}/{first:06d}.tar") as writer:
            for number, path in enumerate(paths[first : first + CLIPS_PER_SHARD], start=first):
                audio, _ = soundfile.read(path, dtype="float32")
                fbank = reference(torch.from_numpy(audio))
                buffer = io.BytesIO()
                np.save(buffer, fbank.numpy().astype(np.float16))
                sample = {"json": {"id": str(number), "labels": ["any"]}, "npy": buffer.getvalue()}
                writer.write({"__key__": f"{number:08d}", **sample})


def make_manifest(paths: list[str]) -> Manifest:
    clips = [Clip(id=str(i), uri=path, labels=("any",)) for i, path in enumerate(paths)]
    return from_clips(clips, ["any"])


def time_loops(paths: list[str], num_processes: int, folder: str) -> float:
    """Seconds of several loops in parallel, including the start of their processes."""
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        tasks = [(paths[i::num_processes], f"{folder}/loop{i}") for i in range(num_processes)]
        pool.starmap(time_loop, tasks)
    return time.monotonic() - start


def time_loop(paths: list[str], output: str) -> float:
    """Seconds of building all shards in sequence in this process, without Ray."""
    manifest, settings = make_manifest(paths), PrepareSettings(clips_per_shard=CLIPS_PER_SHARD)
    job = BuildJob(output=output, settings=settings)
    plan = make_plan(manifest, settings)
    write_plan(plan, job.work, manifest)
    start = time.monotonic()
    for spec in plan.specs:
        build_shard(spec, job)
    seconds = time.monotonic() - start
    shutil.rmtree(job.output)
    return seconds


def time_prepare(paths: list[str], num_cpus: int, folder: str) -> float:
    """Seconds of `prepare`, including the start of Ray."""
    manifest = make_manifest(paths)
    start = time.monotonic()
    prepare(
        manifest,
        f"{folder}/dataset",
        PrepareSettings(clips_per_shard=CLIPS_PER_SHARD),
        session=connect(num_cpus=num_cpus),
        max_reject_share=0.0,
    )
    return time.monotonic() - start


class MemoryWatch:
    """The largest resident set of any worker process of Ray, sampled twice a second."""

    peak_bytes = 0
    early_bytes = 0
    """Up to the first 1,000 clips."""

    def __init__(self, parts: Path) -> None:
        self._parts = parts

    def __enter__(self) -> "MemoryWatch":
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process in Path("/proc").glob("[0-9]*"):
                with suppress(OSError):
                    if (process / "cmdline").read_bytes().startswith(b"ray::"):
                        status = (process / "status").read_text()
                        resident = re.search(r"VmRSS:\s+(\d+) kB", status)
                        if resident:
                            self.peak_bytes = max(self.peak_bytes, 1024 * int(resident[1]))
            if len(list(self._parts.glob("*.parquet"))) * CLIPS_PER_SHARD <= EARLY_CLIPS:
                self.early_bytes = self.peak_bytes


def describe_machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
