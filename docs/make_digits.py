"""Makes the spoken digits of docs/own-data.md, with the speech synthesiser espeak-ng.

In: the number of voices and of takes. Steps: each voice says each digit at several speeds and
pitches; a light noise is added, as of a line. Out: clips of 8 kHz, `zero/VOICE_TAKE.wav` to
`nine/VOICE_TAKE.wav`, and `pause/` with noise alone; and an archive of calls, in which voices that
are in no clip say numbers. One of the calls is cut off.

    sudo apt-get install -y espeak-ng
    python docs/make_digits.py digits archive
"""

import argparse
import io
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Samples = NDArray[np.float32]

RATE_HZ = 8_000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VOICES = {
    "anna": "en-us+f2",
    "bob": "en-us+m1",
    "carl": "en-gb+m3",
    "dora": "en-gb+f4",
    "emil": "en-gb-scotland+m2",
    "fay": "en-gb-scotland+f1",
    "gus": "en-us-nyc+m4",
    "hanna": "en-us-nyc+f3",
    "ian": "en-gb-x-rp+m5",
    "jane": "en-gb-x-rp+f5",
    "karl": "en-029+m7",
    "lena": "en-029+f2",
    "max": "en-gb-x-gbclan+m6",
    "nora": "en-gb-x-gbclan+f1",
    "otto": "en-gb-x-gbcwmd+m8",
}
"""Names of the synthesiser's accents and voices."""
CALLERS = ("en-gb-x-gbcwmd+f3", "en-us+m8")
CALLS = (
    ("three", "one", "four", "one", "five"),
    ("two", "seven", "one", "eight"),
    ("zero", "five", "seven"),
    ("six", "two", "eight", "three"),
    ("nine", "nine", "zero"),
    ("four", "six", "six", "nine"),
)
"""What is said in each, by the callers in turn."""
PAUSE_S = 0.9
NOISE = 1e-3
"""Its standard deviation, of a full scale of 1."""


def say(word: str, voice: str, *, words_per_minute: int = 160, pitch: int = 50) -> Samples:
    """A word as spoken by a voice, `[num_samples]`."""
    options = [f"-v{voice}", f"-s{words_per_minute}", f"-p{pitch}", "--stdout"]
    spoken = subprocess.run(["espeak-ng", *options, word], capture_output=True, check=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(spoken), dtype="float32")
    resampled: Samples = soxr.resample(samples, rate_hz, RATE_HZ)
    return resampled


def write(path: Path, samples: Samples) -> None:
    """A 16-bit WAV, with a noise that its name decides."""
    rng = np.random.default_rng(zlib.crc32(path.name.encode()))
    path.parent.mkdir(parents=True, exist_ok=True)
    noisy = samples + NOISE * rng.standard_normal(len(samples)).astype(np.float32)
    soundfile.write(path, noisy.clip(-1, 1), RATE_HZ, subtype="PCM_16")


def write_clips(folder: Path, num_voices: int, num_takes: int) -> int:
    """Write a folder per digit; returns the number of clips."""
    for voice in list(VOICES)[:num_voices]:
        for take in range(num_takes):
            speed = 130 + 80 * take // num_takes
            pitch = 30 + (37 * take) % 50
            for digit in DIGITS:
                clip = say(digit, VOICES[voice], words_per_minute=speed, pitch=pitch)
                write(folder / digit / f"{voice}_{take}.wav", clip)
            silence = np.zeros(round((0.5 + 0.2 * take) * RATE_HZ), np.float32)
            write(folder / "pause" / f"{voice}_{take}.wav", silence)
    return num_voices * num_takes * (len(DIGITS) + 1)


def write_calls(folder: Path) -> int:
    """Write the archive, the last call without its second half; returns the number of calls."""
    pause = np.zeros(round(PAUSE_S * RATE_HZ), np.float32)
    for number, digits in enumerate(CALLS):
        voice = CALLERS[number % len(CALLERS)]
        parts = [part for digit in digits for part in (say(digit, voice), pause)]
        write(folder / f"call-{number + 1}.wav", np.concatenate(parts))
    last = folder / f"call-{len(CALLS)}.wav"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return len(CALLS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, help="folder to write, with a folder per digit")
    parser.add_argument("archive", type=Path, help="folder to write, with calls")
    parser.add_argument("--voices", type=int, default=len(VOICES), help="at most %(default)s")
    parser.add_argument("--takes", type=int, default=4, help="of each (default: %(default)s)")
    arguments = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        sys.exit("espeak-ng is missing: apt-get install espeak-ng")
    num_clips = write_clips(arguments.clips, arguments.voices, arguments.takes)
    print(f"{arguments.clips}: {num_clips} clips")
    print(f"{arguments.archive}: {write_calls(arguments.archive)} calls")


if __name__ == "__main__":
    main()
