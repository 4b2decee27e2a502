"""Clips per second of `prepare`, beside a plain loop over the same files, in one run.

In: a folder of audio, such as ESC-50's `audio/`. Steps: cut it into 10 s FLAC files of 16 kHz, as
AudioSet's clips are; list them in a manifest as often as it takes; time a plain loop (soundfile,
`torchaudio.compliance.kaldi.fbank`, `np.save`) in one process with one thread and in one process
per CPU; time `prepare` from starting Ray to the finished card. Out: a table.

    .venv/bin/python benchmarks/prepare_throughput.py AUDIO_FOLDER --clips 4000
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
import torchaudio

from cluster.session import connect
from pipeline.manifest import Clip, Manifest, from_clips
from pipeline.plan import PrepareSettings
from pipeline.prepare import prepare

RATE_HZ = 16_000
CLIP_S = 10
NUM_FILES = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audio", type=Path, help="folder of audio files")
    parser.add_argument("--clips", type=int, default=4000, help="clips in the manifest")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="CPUs for both sides")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = make_clips(arguments.audio, Path(folder))
        paths = [str(files[i % len(files)]) for i in range(arguments.clips)]
        print(f"{len(paths)} clips of {CLIP_S} s ({len(files)} different), {describe_machine()}")
        rows = [
            ("plain loop, 1 process", time_loop(paths, 1, folder)),
            (f"plain loop, {arguments.cpus} processes", time_loop(paths, arguments.cpus, folder)),
            (f"prepare, {arguments.cpus} CPUs", time_prepare(paths, arguments.cpus, folder)),
        ]
    base = len(paths) / rows[0][1]
    print(f"{'':28}{'seconds':>10}{'clips/s':>10}{'ratio':>8}")
    for name, seconds in rows:
        rate = len(paths) / seconds
        print(f"{name:28}{seconds:10.1f}{rate:10.1f}{rate / base:8.2f}")


def make_clips(source: Path, folder: Path) -> list[Path]:
    """Write up to `NUM_FILES` FLAC files of `CLIP_S` seconds, cut from the source one after the
    other."""
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


def time_loop(paths: list[str], num_processes: int, folder: str) -> float:
    """Seconds of the plain loop, its processes' start included."""
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(num_processes) as pool:
        shares = [(paths[i::num_processes], folder, i) for i in range(num_processes)]
        pool.starmap(plain_loop, shares)
    return time.monotonic() - start


def plain_loop(paths: list[str], folder: str, number: int) -> None:
    """What one writes first: read, fbank, save."""
    torch.set_num_threads(1)
    for path in paths:
        audio, _ = soundfile.read(path, dtype="float32")
        waveform = torch.from_numpy(audio)[None]
        fbank = torchaudio.compliance.kaldi.fbank(
            waveform - waveform.mean(),
            htk_compat=True,
            sample_frequency=RATE_HZ,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
            frame_shift=10,
        )
        np.save(Path(folder) / f"loop-{number}.npy", fbank.numpy().astype(np.float16))


def time_prepare(paths: list[str], num_cpus: int, folder: str) -> float:
    """Seconds of `prepare`, Ray's start included."""
    clips = [Clip(id=str(i), uri=path, labels=("any",)) for i, path in enumerate(paths)]
    manifest: Manifest = from_clips(clips, ["any"])
    start = time.monotonic()
    prepare(
        manifest,
        str(Path(folder) / "dataset"),
        PrepareSettings(),
        session=connect(num_cpus=num_cpus),
        max_reject_share=0.0,
    )
    return time.monotonic() - start


def describe_machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
