"""A small built-in data set, so that every step can be tried without downloading anything.

In: a local folder and `SyntheticSettings`. Each clip is a mix of one to three of ten kinds of sound
(`synthetic_sounds`), at its own sample rate, over a light noise floor, encoded as WAV, FLAC or OGG
Vorbis. A few broken files, of kinds found in AudioSet downloads, are listed, too.

Out: `audio/*.{wav,flac,ogg}`, `labels.txt` (the vocabulary, one label per line) and, last,
`clips.csv` (`id,path,labels,split`; paths relative to the folder, labels joined by `;`). The set
is complete once `clips.csv` exists. Nothing is resumed: a second call rewrites everything.

The same settings give the same bytes with the same library versions, OGG included: the stream
serial number and the WAV time stamp that libsndfile adds are overwritten. A clip depends only on
the seed, its split and its number, so a larger set begins with the clips of a smaller one.

Shapes: N samples of one channel, H channels.
"""

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from pipeline.audio.ogg import with_serial_zero
from pipeline.errors import UserError
from pipeline.manifest.synthetic_sounds import LABELS, Signal, synthesise

SAMPLE_RATES_HZ = (8000, 11025, 16000, 22050, 32000, 44100, 48000)

# Five encodings and seven rates share no factor, so cycling through both meets every pair.
ENCODINGS = (
    ("WAV", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("WAV", "FLOAT"),
    ("WAV", "PCM_24"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticSettings:
    """How many clips to make and how long. Out-of-range values raise ValueError."""

    num_train: int = 640
    """Clips in the training split that can be decoded."""
    num_eval: int = 160
    """Clips in the evaluation split that can be decoded."""
    num_broken: int = 5
    """Additional listed clips that cannot be used; they cycle through the kinds in `BROKEN`."""
    seed: int = 0
    """Seed of all random draws."""
    min_duration_s: float = 1.0
    """Shortest clip, in seconds."""
    max_duration_s: float = 3.0
    """Longest clip, in seconds."""

    def __post_init__(self) -> None:
        for name in ("num_train", "num_eval"):
            if getattr(self, name) < len(LABELS):
                raise ValueError(
                    f"{name}: must be at least {len(LABELS)}, one clip a class, "
                    f"got {getattr(self, name)}"
                )
        for name in ("num_broken", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be 0 or more, got {getattr(self, name)}")
        if not self.min_duration_s >= 0.5:
            raise ValueError(f"min_duration_s: must be at least 0.5, got {self.min_duration_s}")
        if not self.min_duration_s <= self.max_duration_s <= 60.0:
            raise ValueError(
                f"max_duration_s: must be from min_duration_s ({self.min_duration_s}) to 60, "
                f"got {self.max_duration_s}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One line of clips.csv and the bytes of its file (None: listed, but not written)."""

    id: str
    extension: str
    labels: tuple[str, ...]
    split: str
    audio: bytes | None


# Zipf's law with the exponent that makes the first class twice as likely as the last.
_CLASS_WEIGHTS = np.arange(1, len(LABELS) + 1) ** -np.log10(2)


def _choose_labels(rng: np.random.Generator, clip_number: int) -> tuple[str, ...]:
    """One to three different classes; the first clips of a split name every class once."""
    weights = _CLASS_WEIGHTS / _CLASS_WEIGHTS.sum()
    num_labels = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    chosen = rng.choice(len(LABELS), size=num_labels, replace=False, p=weights).tolist()
    if clip_number < len(LABELS) and clip_number not in chosen:
        chosen[0] = clip_number
    return tuple(LABELS[index] for index in chosen)


def _mix(
    labels: Sequence[str],
    num_samples: int,
    sample_rate_hz: int,
    num_channels: int,
    rng: np.random.Generator,
) -> Signal:
    """The labelled sounds at 0 to -9 dB, each with its onset and panning, and noise: `[N, H]`."""
    floor_db = rng.uniform(-45, -35)
    mix = 10 ** (floor_db / 20) * rng.standard_normal((num_samples, num_channels))
    shortest = min(num_samples, int(0.6 * sample_rate_hz))  # a shorter siren would be a single tone
    for number, label in enumerate(labels):
        length = max(shortest, int(rng.uniform(0.6, 1.0) * num_samples))
        onset = int(rng.integers(num_samples - length + 1))
        gain = 10 ** ((rng.uniform(-9, 0) if number else 0.0) / 20)
        angle = rng.uniform(0.25, 0.75) * np.pi / 2
        pan = np.array([np.cos(angle), np.sin(angle)]) if num_channels == 2 else np.ones(1)
        sound = synthesise(label, length, sample_rate_hz, rng)
        mix[onset : onset + length] += gain * sound[:, None] * pan
    peak_db = rng.uniform(-12, -1)
    return 10 ** (peak_db / 20) * mix / float(np.abs(mix).max())


def _make_clip(settings: SyntheticSettings, split: str, number: int) -> _Row:
    rng = np.random.default_rng([settings.seed, ("train", "eval").index(split), number])
    labels = _choose_labels(rng, number)
    container, subtype = ENCODINGS[number % len(ENCODINGS)]
    sample_rate_hz = SAMPLE_RATES_HZ[number % len(SAMPLE_RATES_HZ)]
    duration_s = rng.uniform(settings.min_duration_s, settings.max_duration_s)
    num_channels = int(rng.choice([1, 2], p=[0.6, 0.4]))
    audio = _mix(labels, round(duration_s * sample_rate_hz), sample_rate_hz, num_channels, rng)
    return _Row(
        id=f"{split}-{number:05d}",
        extension=container.lower(),
        labels=labels,
        split=split,
        audio=_encode(audio, sample_rate_hz, container, subtype),
    )


def _encode(audio: Signal, sample_rate_hz: int, container: str, subtype: str) -> bytes:
    """The bytes of an audio file holding `audio` `[N, H]`, the same at every call."""
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate_hz, format=container, subtype=subtype)
    if container == "OGG":
        return with_serial_zero(buffer.getvalue())
    if subtype == "FLOAT":
        return _without_time_stamp(buffer.getvalue())
    return buffer.getvalue()


def _without_time_stamp(wav: bytes) -> bytes:
    """Zero the time of writing, which libsndfile puts in the PEAK chunk of a float WAV."""
    peak = wav.index(b"PEAK", 0, 128)
    stamp = peak + 12  # after the chunk's name, size and version
    return wav[:stamp] + bytes(4) + wav[stamp + 4 :]


def _truncated_flac() -> bytes:
    """A download that ended within the stream header of 42 bytes."""
    return _encode(np.zeros((16000, 1)), 16000, "FLAC", "PCM_16")[:30]


def _nan_wav() -> bytes:
    return _encode(np.full((16000, 1), np.nan), 16000, "WAV", "FLOAT")


BROKEN: tuple[tuple[str, str, Callable[[], bytes | None]], ...] = (
    ("empty file", "wav", lambda: b""),
    ("header cut short", "flac", _truncated_flac),
    ("web page instead of audio", "flac", lambda: b"<!DOCTYPE html>\n<html>403 Forbidden</html>\n"),
    ("every sample NaN", "wav", _nan_wav),
    ("listed but missing", "wav", lambda: None),
)
"""Kinds of broken clip: what is wrong, file name extension, the bytes (None: no file)."""


def _make_broken(number: int) -> _Row:
    # The number determines the kind, so an earlier set never leaves a file at a missing path.
    _, extension, contents = BROKEN[number % len(BROKEN)]
    return _Row(
        id=f"broken-{number:05d}",
        extension=extension,
        labels=(LABELS[number % len(LABELS)],),
        split=("train", "eval")[number % 2],
        audio=contents(),
    )


def _rows(settings: SyntheticSettings) -> Iterator[_Row]:
    for number in range(settings.num_train):
        yield _make_clip(settings, "train", number)
    for number in range(settings.num_eval):
        yield _make_clip(settings, "eval", number)
    for number in range(settings.num_broken):
        yield _make_broken(number)


def _open_folder(folder: str | Path) -> Path:
    """Prepare the folder for writing: create `audio/`, remove `clips.csv`."""
    if "://" in str(folder):
        raise UserError(str(folder), "synthetic clips need a local folder", "give one")
    try:
        (Path(folder) / "audio").mkdir(parents=True, exist_ok=True)
        (Path(folder) / "clips.csv").unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            str(folder), f"cannot write here ({error.strerror})", "give another folder"
        ) from error
    return Path(folder)


def write_synthetic(folder: str | Path, settings: SyntheticSettings) -> int:
    """Write the data set into a local folder; return the number of clips listed.

    Broken clips are listed, too. Files of an earlier set are replaced if they have the same name;
    others stay, but are not listed. Raises UserError if the folder is remote or not writable.
    """
    root = _open_folder(folder)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(("id", "path", "labels", "split"))
    num_clips = 0
    for row in _rows(settings):
        path = f"audio/{row.id}.{row.extension}"
        if row.audio is not None:
            (root / path).write_bytes(row.audio)
        writer.writerow((row.id, path, ";".join(row.labels), row.split))
        num_clips += 1
    (root / "labels.txt").write_bytes("".join(f"{label}\n" for label in LABELS).encode())
    unfinished = root / "clips.csv.part"
    unfinished.write_bytes(table.getvalue().encode())
    unfinished.replace(root / "clips.csv")
    return num_clips


def _parser() -> argparse.ArgumentParser:
    defaults = SyntheticSettings()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.manifest.synthetic",
        description="Write a small data set of synthetic sounds: clips.csv, labels.txt, audio/.",
        epilog="Classes: " + ", ".join(LABELS) + ".",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", metavar="FOLDER", help="local folder to write into")
    add = parser.add_argument
    add("--num-train", type=int, default=defaults.num_train, help="training clips")
    add("--num-eval", type=int, default=defaults.num_eval, help="evaluation clips")
    add(
        "--num-broken",
        type=int,
        default=defaults.num_broken,
        help="additional listed clips that cannot be used: "
        + ", ".join(kind for kind, _, _ in BROKEN),
    )
    add("--seed", type=int, default=defaults.seed, help="seed of all random draws")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: write the data set, print one line about it; return the exit status."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    folder = options.pop("folder")
    try:
        settings = SyntheticSettings(**options)
    except ValueError as error:
        parser.error(str(error))
    try:
        num_clips = write_synthetic(folder, settings)
    except UserError as error:
        parser.exit(1, f"error: {error}\n")
    print(
        f"{Path(folder) / 'clips.csv'}: {num_clips} clips of {len(LABELS)} classes "
        f"({settings.num_train} train, {settings.num_eval} eval, {settings.num_broken} broken)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
