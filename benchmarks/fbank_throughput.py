"""Milliseconds per clip for the fbank alone: ours and torchaudio's, in one run.

In: 10 s clips of noise at 16 kHz. Steps: one clip at a time on one CPU thread, the sides in turns;
with a GPU, also batches of clips there, with and without the copy to the GPU. Out: a table, and
figures (see `figures`).

    .venv/bin/python benchmarks/fbank_throughput.py
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from functools import partial

import torch
import torchaudio
from device_clock import device_name, median_s, seconds
from figures import record
from torch import Tensor

from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings

RATE_HZ = 16_000
CLIP_S = 10
SETTINGS = FbankSettings()
CPU = torch.device("cpu")
PART = "fbank"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="turns of each side on the CPU")
    parser.add_argument("--batch-size", type=int, default=128, help="clips per batch on a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{CLIP_S} s clips, {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    )
    waveforms = 0.1 * torch.randn(arguments.rounds, CLIP_S * RATE_HZ)
    times: dict[str, list[float]] = {"torchaudio": [], "ours": []}
    for waveform in waveforms:
        times["torchaudio"].append(seconds(partial(reference, waveform), CPU))
        times["ours"].append(seconds(partial(ours, waveform), CPU))
    cpu_s = {name: statistics.median(samples) for name, samples in times.items()}
    for name, clip_s in cpu_s.items():
        show(f"{name}, 1 CPU thread", clip_s)
    print(record(PART, "torchaudio / ours, 1 CPU thread", cpu_s["torchaudio"] / cpu_s["ours"]))
    if torch.cuda.is_available():
        measure_gpu(0.1 * torch.randn(arguments.batch_size, CLIP_S * RATE_HZ))
    else:
        print("no GPU here")


def measure_gpu(waveforms: Tensor) -> None:
    """Time the sides on the GPU: torchaudio takes a clip at a time, ours a batch."""
    device = torch.device("cuda")
    print(device_name(device))
    batch = waveforms.pin_memory()
    on_device = batch.to(device)
    sides: dict[str, Callable[[], object]] = {
        "torchaudio, GPU": lambda: [reference(clip) for clip in on_device],
        f"ours, GPU, {len(batch)} at once": lambda: ours(on_device),
        "ours, GPU, with the copy there": lambda: ours(batch.to(device, non_blocking=True)),
    }
    clip_s = {name: median_s(side, device, 10) / len(batch) for name, side in sides.items()}
    for name, taken_s in clip_s.items():
        show(name, taken_s)
    theirs, our_batch, _ = clip_s.values()
    print(record(PART, "torchaudio / ours, GPU", theirs / our_batch))


def ours(waveform: Tensor) -> Tensor:
    return fbank(waveform, SETTINGS)


def reference(waveform: Tensor) -> Tensor:
    features: Tensor = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None],
        htk_compat=True,
        sample_frequency=RATE_HZ,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return features


def show(name: str, clip_s: float) -> None:
    record(PART, name, 1000 * clip_s, "ms a clip")
    print(f"{name:32}{1000 * clip_s:8.3f} ms{1 / clip_s:12.0f} clips/s")


if __name__ == "__main__":
    main()
