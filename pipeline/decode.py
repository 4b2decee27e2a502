"""Bytes of an audio file to a mono waveform at the sample rate of the fbank.

Steps: open with libsndfile, check the header against the limits, read the asked stretch, average
the channels, resample with soxr. Whatever is wrong with a file raises `RejectError`, with a reason
that says what.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from pipeline.rejects import RejectError

MIN_FILE_RATE_HZ = 1_000
MAX_FILE_RATE_HZ = 768_000

_FRAMES_UNKNOWN = 2**63 - 1
"""What libsndfile says of a FLAC file that was written as a stream."""
_WAV_SLACK_BYTES = 64
"""Some programs count the header's own bytes in a WAV's length, too."""
_WAV_UNKNOWN_BYTES = 0x7FFF0000
"""Lengths from here on are what programs write that do not know the length yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """Limits on what is decoded, so that one file cannot take a worker's memory."""

    max_duration_s: float = 600.0
    """Longest stretch decoded for one clip, in seconds; longer clips are rejected."""

    def __post_init__(self) -> None:
        if not 0 < self.max_duration_s <= 86_400:
            raise ValueError(
                f"max_duration_s: must be above 0 and at most 86400, got {self.max_duration_s}"
            )


def decode_audio(
    data: bytes,
    settings: DecodeSettings,
    *,
    sample_rate_hz: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> npt.NDArray[np.float32]:
    """Decode, cut, mix down and resample one clip.

    Args:
        data: the whole file: WAV, FLAC, OGG, MP3 or whatever else libsndfile reads.
        settings: limits.
        sample_rate_hz: rate of the result.
        start_s: where the clip starts in the file, in seconds; None: at the beginning.
        end_s: where it ends; None or past the end of the file: at the end.

    Returns:
        `[N]` float32, nominally in [-1, 1].

    Raises:
        RejectError: the file is empty, cannot be decoded, has no samples in the stretch or samples
            that are not finite, or is outside the limits.
    """
    if not data:
        raise RejectError("decode", "the file is empty")
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = _read_stretch(file, settings, start_s or 0.0, end_s)
            file_rate_hz = int(file.samplerate)
            reached_end = file.tell() == file.frames
    except soundfile.LibsndfileError as error:
        raise RejectError("decode", f"cannot be decoded ({error.error_string})") from error
    if reached_end and _is_cut_wav(data):
        raise RejectError("decode", "ends before the length its header gives")
    if not np.isfinite(samples).all():
        raise RejectError("decode", "samples that are NaN or infinite")
    # The sum of several channels of float samples may overflow float32, their mean cannot.
    mono: npt.NDArray[np.float32] = samples.mean(axis=1, dtype=np.float64).astype(np.float32)
    if file_rate_hz == sample_rate_hz:
        return mono
    resampled: npt.NDArray[np.float32] = soxr.resample(mono, file_rate_hz, sample_rate_hz)
    return resampled


def _read_stretch(
    file: soundfile.SoundFile, settings: DecodeSettings, start_s: float, end_s: float | None
) -> npt.NDArray[np.float32]:
    """`[N, channels]` samples of the stretch, within the limits."""
    rate_hz = file.samplerate
    if not MIN_FILE_RATE_HZ <= rate_hz <= MAX_FILE_RATE_HZ:
        raise RejectError("decode", "the sample rate in the header is out of range")
    if end_s is None and file.frames == _FRAMES_UNKNOWN:
        raise RejectError("decode", "its header gives no length")
    start = round(start_s * rate_hz)
    end = file.frames if end_s is None else min(round(end_s * rate_hz), file.frames)
    if end - start > settings.max_duration_s * rate_hz:
        raise RejectError("decode", f"longer than {settings.max_duration_s:g} s")
    if end <= start:
        raise RejectError("decode", "no samples in the stretch from start_s to end_s")
    file.seek(start)
    samples: npt.NDArray[np.float32] = file.read(end - start, dtype="float32", always_2d=True)
    if len(samples) < end - start:
        # libsndfile returns what it could read of a truncated MP3 without an error.
        raise RejectError("decode", "ends before the length its header gives")
    return samples


def _is_cut_wav(data: bytes) -> bool:
    """Whether a WAV file is shorter than it says: libsndfile takes what is there for the whole."""
    size_bytes = int.from_bytes(data[4:8], "little") + 8
    is_wav = data[:4] == b"RIFF" and data[8:12] == b"WAVE"
    return is_wav and len(data) + _WAV_SLACK_BYTES < size_bytes < _WAV_UNKNOWN_BYTES
