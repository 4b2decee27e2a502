"""Small waveforms and audio files, made in code."""

import io
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from pipeline.manifest import Clip

Samples = NDArray[np.float32]


def tone(duration_s: float, rate_hz: int, *, hz: float = 440.0, level: float = 0.5) -> Samples:
    """`[N]` samples of a sine."""
    time_s = np.arange(round(duration_s * rate_hz)) / rate_hz
    return (level * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def noise(duration_s: float, rate_hz: int, *, seed: int = 0, level: float = 0.1) -> Samples:
    """`[N]` samples of white noise."""
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(round(duration_s * rate_hz))).astype(np.float32)


def encode(
    samples: NDArray[np.floating],
    rate_hz: int = 16_000,
    container: str = "WAV",
    subtype: str = "PCM_16",
) -> bytes:
    """An audio file of `[N]` or `[N, channels]` samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=container, subtype=subtype)
    return buffer.getvalue()


def write_clips(
    folder: Path, num_clips: int, *, split: str = "train", duration_s: float = 0.3
) -> list[Clip]:
    """Write small WAV files of differing lengths, noise of two labels; returns their clips."""
    folder.mkdir(parents=True, exist_ok=True)
    clips = []
    for number in range(num_clips):
        path = folder / f"{split}-{number:03d}.wav"
        path.write_bytes(encode(noise(duration_s + 0.01 * (number % 7), 16_000, seed=number)))
        label = ("dog", "rain")[number % 2]
        clips.append(
            Clip(id=f"{split}/{number}", uri=str(path), labels=(label,), split=split, fold=1)
        )
    return clips
