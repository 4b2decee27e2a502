"""Recordings as they lie in an archive: pieces of real clips, mixed, in four formats, some broken.

In: audio files, how many recordings, a seed. Steps: cut a piece of one file, add a piece of
another, encode. Out: files in a folder or bucket, the same for the same seed.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from pipeline import storage
from tests.support.audio import Samples, encode

FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
}
NUM_KINDS_BROKEN = 4


def write_recordings(
    folder: str, files: Sequence[Path], num: int, num_broken: int, *, seed: int = 0
) -> None:
    """Write `0000.wav`, `0001.flac` and so on, of 1 to 4 s, some of them broken."""
    rng = random.Random(seed)
    broken = rng.sample(range(num), num_broken)
    for number in range(num):
        suffix = list(FORMATS)[number % len(FORMATS)]
        container, subtype = FORMATS[suffix]
        rate_hz, duration_s = 0, rng.uniform(1, 4)
        mixed: Samples = np.zeros(0, np.float32)
        for level in (0.7, 0.3):
            samples, rate_hz = soundfile.read(rng.choice(files), dtype="float32")
            length = min(round(duration_s * rate_hz), len(samples))
            start = rng.randrange(len(samples) - length + 1)
            piece = level * samples[start : start + length]
            mixed = piece if not len(mixed) else mixed + piece
        content = encode(mixed.clip(-1, 1), rate_hz, container, subtype)
        if number in broken:
            content = _broken(content, broken.index(number) % NUM_KINDS_BROKEN, rng)
        storage.write_bytes(storage.join(folder, f"{number:04d}{suffix}"), content)


def _broken(content: bytes, kind: int, rng: random.Random) -> bytes:
    """A file that is cut, empty, text, or damaged in its middle."""
    middle = len(content) // 2
    if kind == 0:
        return content[:middle]
    if kind == 1:
        return b""
    if kind == 2:
        return b"404 Not Found\n"
    return content[:20] + rng.randbytes(middle) + content[middle + 20 :]
