"""Odd files of sound, decoded as `prepare` does and as FFmpeg does."""

import io
from contextlib import suppress
from functools import cache
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.audio.decode import Decoded, decode_audio
from pipeline.audio.settings import DecodeSettings
from tests.support.audio import Samples, noise, tone

RATE_HZ = 32_000

FIRST = "bytes before its first frame"
LAST = "bytes after its last frame"
TAGS = "tags between its frames"
COUNT = "its header counts other frames"
SEVERAL = "several recordings in one file"


def decode(data: bytes, rate_hz: int = RATE_HZ, *, strict: bool = False) -> Decoded:
    return decode_audio(data, DecodeSettings(strict=strict), sample_rate_hz=rate_hz)


def ffmpeg(data: bytes) -> Samples:
    """Decoded by FFmpeg as its command line does."""
    blocks = []
    container: Any
    with av.open(io.BytesIO(data), metadata_errors="ignore") as container:
        for packet in container.demux(container.streams.best("audio")):
            with suppress(av.FFmpegError):
                for frame in packet.decode():
                    (planes,) = av.AudioResampler(format="fltp").resample(frame)
                    blocks.append(planes.to_ndarray().mean(axis=0))
    return np.concatenate(blocks)


def assert_same_sound(ours: Samples, reference: NDArray[np.floating], *, snr_db: float) -> None:
    assert len(ours) == len(reference)
    error = np.mean((ours - reference) ** 2)
    assert 10 * np.log10(np.mean(reference**2) / max(error, 1e-30)) > snr_db


@cache
def sound() -> Samples:
    return tone(1.5, RATE_HZ, hz=500) * tone(1.5, RATE_HZ, hz=2) + noise(1.5, RATE_HZ, level=0.03)
