"""Bytes of an audio file to a mono waveform at the sample rate of the fbank.

Steps: detect the kind of file by its content, walk its parts, check its header against the limits,
decode the requested stretch in blocks, mix down the channels, resample with soxr. FFmpeg decodes;
libsndfile reads plain samples in WAV and stretches of FLAC, dr_flac whole FLAC files: both are
faster and give the same samples. Any fault of the file raises `RejectError` with the reason.

A file that is cut short is rejected, as far as its kind allows to detect it:
`pipeline.audio.containers` lists what is checked and what cannot be detected. A stretch that ends
before the cut can be used.
"""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import soxr

from pipeline.audio import ffmpeg, flac, sndfile
from pipeline.audio.block import Block
from pipeline.audio.containers import Kind, examine, kind_of
from pipeline.audio.frames import without_id3
from pipeline.audio.rejects import TOO_LONG, RejectError
from pipeline.audio.settings import Channel, DecodeSettings
from pipeline.audio.structure import Structure

Samples = npt.NDArray[np.float32]

MAX_LEVEL = 100.0
"""Largest sample accepted as sound, 40 dB above full scale: float mixes exceed full scale by a few
decibels, floats on the scale of 16-bit integers by up to 90."""
MIN_FILE_RATE_HZ = 1_000
MAX_FILE_RATE_HZ = 768_000

_BLOCK_VALUES = 2**22
"""Samples of a whole FLAC file that are decoded at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """A clip's sound, and what was noticed on the way."""

    samples: Samples
    """`[N]` float32 of one channel, nominally in [-1, 1]."""
    file_level_dbfs: float
    """Level of the stretch over all channels of the file, before they were mixed down; -inf for
    silence. Far above the level of `samples` where the channels cancel each other."""
    file_rate_hz: int
    """Sample rate of the file."""
    repaired: str | None = None
    """What was odd about the file, though no audio was missing; None if nothing."""


def level_dbfs(power: float) -> float:
    """Level of a mean square, rounded to a hundredth of a decibel; -inf for silence."""
    return round(10 * math.log10(power), 2) if power else -math.inf


def decode_audio(
    data: bytes,
    settings: DecodeSettings,
    *,
    sample_rate_hz: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Decoded:
    """Decode, cut, mix down and resample one clip.

    Args:
        data: the whole file, of any kind in `pipeline.audio.containers`; of a video, the sound.
        settings: limits, and what to do with channels and odd files.
        sample_rate_hz: rate of the result.
        start_s: where the clip starts, in seconds on the file's clock; None: at the beginning.
        end_s: where it ends; None or past the end of the file: at the end.

    Returns:
        The samples. Those of a stretch equal that part of the whole file.

    Raises:
        RejectError: the file is empty, cannot be decoded, is cut short or outside the limits, has
            no samples in the stretch, or has samples that are not finite or far outside [-1, 1].
    """
    try:
        structure, kind = examined(data, settings)
        blocks = read_blocks(
            structure, kind, start_s or 0.0, end_s, partial(_check_limits, settings)
        )
        with closing(blocks):
            return _join(blocks, settings, sample_rate_hz, repairs_of(structure))
    except (RejectError, MemoryError):
        raise
    except Exception as error:
        raise as_reject(error) from error


def examined(data: bytes, settings: DecodeSettings) -> tuple[Structure, Kind]:
    """The parts of a file, and its kind.

    Raises:
        RejectError: the file is empty or of no known kind, or odd and the settings are strict.
    """
    if not data:
        raise RejectError("decode", "the file is empty")
    data = without_id3(data)
    kind = kind_of(data)
    if kind is None:
        raise RejectError("decode", "cannot be decoded (no known kind of audio file)")
    structure = examine(data, kind)
    if settings.strict and structure.repairs:
        raise RejectError("decode", "cut short or damaged")
    return structure, kind


def repairs_of(structure: Structure) -> str | None:
    """What is odd about a file, in words; None if nothing."""
    return "; ".join(structure.repairs) or None


def as_reject(error: Exception) -> RejectError:
    """Decoders answer broken files in many ways. Whichever it is, only this clip is lost."""
    return RejectError("decode", f"cannot be decoded ({type(error).__name__} in a decoder)")


def read_blocks(
    structure: Structure,
    kind: Kind,
    start_s: float,
    end_s: float | None,
    check: Callable[[int, int, int], None],
) -> Generator[Block, None, None]:
    """A stretch's samples, from the decoder for this kind; an error after all before a fault.

    Args:
        structure: of the file.
        kind: of the file.
        start_s: where the stretch starts.
        end_s: where it ends; None: at the end of the file.
        check: called with sample rate, samples per channel and channels, if a header has them,
            before anything is decoded; raises if they are out of range.
    """
    recordings, is_cut, _ = structure
    data = recordings[0]
    is_single_flac = kind == "flac" and len(recordings) == 1
    if is_single_flac and start_s == 0 and end_s is None:
        block = flac.read_flac(data, _BLOCK_VALUES)
        if block is not None:
            yield block
            return
    stretch = None
    if kind == "wav":
        stretch = sndfile.open_wav(data, start_s, end_s)
    elif is_single_flac and end_s is not None:
        stretch = sndfile.open_flac(data, start_s, end_s)
    if stretch is None:
        if data.startswith(b"RIFX"):
            # FFmpeg takes its samples for little-endian ones.
            raise RejectError("decode", "cannot be decoded (big-endian WAV of an unusual coding)")
        yield from ffmpeg.read_blocks(recordings, kind, start_s, end_s, is_cut=is_cut)
        return
    with stretch.file:
        check(stretch.rate_hz, stretch.num_frames, stretch.num_channels)
        yield from stretch.read_blocks()
        if stretch.reaches_end and is_cut:
            raise RejectError("decode", "cut short or damaged")


def _join(
    blocks: Iterator[Block], settings: DecodeSettings, sample_rate_hz: int, repaired: str | None
) -> Decoded:
    """The blocks as one waveform."""
    mixer = Mixer(settings.channel, sample_rate_hz)
    parts: list[Samples] = []
    for file_rate_hz, samples in blocks:
        num_frames = mixer.num_frames + len(samples)
        _check_limits(settings, file_rate_hz, num_frames, samples.shape[1])
        parts.append(mixer.mix(file_rate_hz, samples))
    if not mixer.num_frames:
        raise RejectError("decode", "no samples in the stretch from start_s to end_s")
    if len(rest := mixer.rest()):
        parts.append(rest)
    return Decoded(
        samples=parts[0] if len(parts) == 1 else np.concatenate(parts),
        file_level_dbfs=level_dbfs(mixer.power),
        file_rate_hz=mixer.file_rate_hz,
        repaired=repaired,
    )


class Mixer:
    """Mixes a file's blocks down to one channel and resamples them, without seams.

    Args:
        channel: what to make of several channels.
        sample_rate_hz: rate of the result.
    """

    def __init__(self, channel: Channel, sample_rate_hz: int) -> None:
        self.num_frames = 0
        """Samples per channel of the file so far."""
        self.file_rate_hz = sample_rate_hz
        """Sample rate of the file, after the first block."""
        self._channel: Channel = channel
        self._rate_hz = sample_rate_hz
        self._resampler: soxr.ResampleStream | None = None
        self._num_values, self._energy = 0, 0.0

    @property
    def power(self) -> float:
        """Mean square of the file's samples so far, over all channels."""
        return self._energy / self._num_values

    def mix(self, file_rate_hz: int, samples: Samples) -> Samples:
        """The samples `[N]` that are known after a block; resampling holds some back.

        Raises:
            RejectError: a sample is not finite or far outside [-1, 1].
        """
        self.num_frames += len(samples)
        self._num_values += samples.size
        block_energy = float(np.vdot(samples, samples))
        self._energy += block_energy
        # Each sample of less energy is finite and small enough; halved for the rounding.
        if not block_energy <= MAX_LEVEL**2 / 2:
            _check_levels(samples)
        mono = _one_channel(samples, self._channel)
        self.file_rate_hz = file_rate_hz
        if file_rate_hz == self._rate_hz:
            return mono
        if self._resampler is None:
            self._resampler = soxr.ResampleStream(file_rate_hz, self._rate_hz, 1, dtype="float32")
        resampled: Samples = self._resampler.resample_chunk(mono)
        return resampled

    def rest(self) -> Samples:
        """The last samples `[N]`, after the last block."""
        nothing = np.empty(0, np.float32)
        if self._resampler is None:
            return nothing
        rest: Samples = self._resampler.resample_chunk(nothing, last=True)
        return rest


def check_rate(rate_hz: int) -> None:
    """Reject a sample rate of the file that no recording has."""
    if not MIN_FILE_RATE_HZ <= rate_hz <= MAX_FILE_RATE_HZ:
        raise RejectError("decode", "the sample rate in the header is out of range")


def _check_limits(
    settings: DecodeSettings, rate_hz: int, num_frames: int, num_channels: int
) -> None:
    check_rate(rate_hz)
    if num_frames > settings.max_duration_s * rate_hz:
        limit = f"{TOO_LONG} {settings.max_duration_s:g} s; --max-duration-s raises this limit"
        raise RejectError("decode", limit)
    if num_frames * num_channels > settings.max_values:
        raise RejectError("decode", "more samples, of all channels, than are decoded for one clip")


def _check_levels(samples: Samples) -> None:
    # Makes no copy of the samples, and NaN propagates.
    peak = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    if not np.isfinite(peak):
        raise RejectError("decode", "samples that are NaN or infinite")
    if peak > MAX_LEVEL:
        raise RejectError("decode", "samples far outside [-1, 1]; scale them")


def _one_channel(samples: Samples, channel: Channel) -> Samples:
    """`[N, channels]` to `[N]`: one of them, or their mean."""
    if samples.shape[1] == 1 or channel == "left":
        return samples[:, 0]
    if channel == "right":
        return samples[:, 1]
    if samples.shape[1] == 2:
        # For two, float32 rounds as float64 and then float32 do, in a quarter of the time.
        both: Samples = samples[:, 0] + samples[:, 1]
        both *= np.float32(0.5)
        return both
    # Adding channel by channel is many times faster than NumPy's mean over so short an axis.
    total = samples[:, 0].astype(np.float64)
    for number in range(1, samples.shape[1]):
        total += samples[:, number]
    mean: Samples = (total / samples.shape[1]).astype(np.float32)
    return mean
