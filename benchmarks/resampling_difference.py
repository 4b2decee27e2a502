"""How far fbanks are from those of audio that sox resampled to 16-bit files, as AST's authors did.

In: a folder of audio that libsndfile reads, at another rate than 16 kHz. Steps: write each file as
16-bit WAV; resample it as `prepare` does, in floats, and by sox, which dithers; compute both
fbanks. Out: the RMS difference of raw log-mels. Needs sox.

    .venv/bin/python benchmarks/resampling_difference.py FOLDER
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from pipeline.audio.decode import decode_audio
from pipeline.audio.settings import DecodeSettings
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings

SETTINGS = FbankSettings()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    files = sorted(path for path in parser.parse_args().folder.iterdir() if path.is_file())
    if shutil.which("sox") is None:
        sys.exit("needs the program sox (`apt-get install sox`)")
    with tempfile.TemporaryDirectory() as folder:
        differences = [difference(file, Path(folder)) for file in files]
    for name, options in (("sox", 0), ("sox -D (no dither)", 1)):
        squares = torch.cat([pair[options].flatten() ** 2 for pair in differences])
        print(f"{name}, {len(files)} files: RMS {squares.mean().sqrt():.3f}")


def difference(file: Path, folder: Path) -> list[Tensor]:
    """Log-mels by sox minus ours, `[T, F]`; with dither, and without."""
    original, resampled = folder / "original.wav", folder / "resampled.wav"
    samples, rate_hz = soundfile.read(file, dtype="int16")
    soundfile.write(original, samples, rate_hz, subtype="PCM_16")
    decoded = decode_audio(
        original.read_bytes(), DecodeSettings(), sample_rate_hz=SETTINGS.sample_rate_hz
    )
    ours = torch.from_numpy(decoded.samples)
    differences = []
    for options in ([], ["-D"]):
        to = ["-r", str(SETTINGS.sample_rate_hz), str(resampled)]
        subprocess.run(["sox", "-V1", *options, str(original), *to], check=True)
        theirs = torch.from_numpy(soundfile.read(resampled, dtype="float32")[0])
        length = min(len(ours), len(theirs))
        differences.append((log_mel(theirs[:length]) - log_mel(ours[:length])).double())
    return differences


def log_mel(samples: Tensor) -> Tensor:
    return fbank(samples - samples.mean(), SETTINGS)


if __name__ == "__main__":
    main()
