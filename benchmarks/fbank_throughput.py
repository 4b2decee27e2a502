"""Milliseconds a clip for the fbank alone: ours and torchaudio's, in one run.

In: 10 s clips of noise at 16 kHz. Steps: one clip at a time on one CPU thread, the sides in turns;
where there is a GPU, clips in batches there, too, with the copy to the GPU and without. Out: a
table.

    .venv/bin/python benchmarks/fbank_throughput.py
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
import torchaudio
from torch import Tensor

from pipeline.fbank import FbankSettings, fbank

RATE_HZ = 16_000
CLIP_S = 10
SETTINGS = FbankSettings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200, help="turns of each side on the CPU")
    parser.add_argument("--batch-size", type=int, default=128, help="clips at once on a GPU")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{CLIP_S} s clips, {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    )
    waveforms = 0.1 * torch.randn(arguments.rounds, CLIP_S * RATE_HZ)
    sides = {"torchaudio": reference, "ours": ours}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for waveform in waveforms:
        for name, compute in sides.items():
            times[name].append(seconds(compute, waveform))
    for name, taken in times.items():
        show(f"{name}, 1 CPU thread", float(np.median(taken)))
    print(f"torchaudio / ours {np.median(times['torchaudio']) / np.median(times['ours']):.2f}")
    if not torch.cuda.is_available():
        print("no GPU here")
        return
    print(torch.cuda.get_device_name())
    batch = waveforms[: arguments.batch_size].pin_memory()
    on_device = batch.cuda()
    size = len(batch)
    on_gpu: tuple[tuple[str, Callable[[Tensor], object], Tensor], ...] = (
        ("torchaudio, GPU", lambda clips: [reference(clip) for clip in clips], on_device),
        (f"ours, GPU, {size} at once", ours, on_device),
        ("the same, copied there", lambda clips: ours(clips.cuda(non_blocking=True)), batch),
    )
    for title, step, clips in on_gpu:
        step(clips)  # the first call makes constants and plans
        torch.cuda.synchronize()
        show(title, min(seconds(step, clips) for _ in range(20)) / size)


def ours(waveform: Tensor) -> Tensor:
    return fbank(waveform, SETTINGS)


def reference(waveform: Tensor) -> Tensor:
    found: Tensor = torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean())[None],
        htk_compat=True,
        sample_frequency=RATE_HZ,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return found


def seconds(compute: Callable[[Tensor], object], values: Tensor) -> float:
    start = time.perf_counter()
    compute(values)
    if values.is_cuda or torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def show(name: str, clip_s: float) -> None:
    print(f"{name:32}{1000 * clip_s:8.3f} ms{1 / clip_s:12.0f} clips/s")


if __name__ == "__main__":
    main()
