"""Bytes of an audio file to a mono waveform at the sample rate of the fbank.

Steps: detect the kind of file by its first bytes, check its header against the limits, decode the
requested stretch in blocks (with libsndfile, dr_flac where that is faster, or FFmpeg where
libsndfile cannot), average the channels, resample with soxr. Any fault of the file raises
`RejectError` with the reason.

A file that is cut short is rejected, as far as its kind allows to detect it:
`pipeline.audio.containers` lists what is checked and what cannot be detected. A stretch that ends
before the cut can be used.
"""

import io
from collections.abc import Generator, Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from pipeline.audio import ffmpeg
from pipeline.audio.containers import (
    Kind,
    is_cut,
    kind_of,
    without_id3,
    xing_frames,
)
from pipeline.audio.ffmpeg import Block
from pipeline.audio.flac import read_flac
from pipeline.audio.ogg import has_damaged_pages
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings

Samples = npt.NDArray[np.float32]

MAX_LEVEL = 100.0
"""Largest sample accepted as sound, 40 dB above full scale: float mixes exceed full scale by a few
decibels, floats on the scale of 16-bit integers by up to 90."""
MIN_FILE_RATE_HZ = 1_000
MAX_FILE_RATE_HZ = 768_000

_BLOCK_VALUES = 2**22
"""Samples of a block: few enough for memory, enough for usual clips: each block costs a seek."""
_FRAMES_UNKNOWN = 2**63 - 1
"""Length that libsndfile reports for a FLAC file that was written as a stream."""
_SNDFILE_KINDS: tuple[Kind, ...] = ("wav", "aiff", "caf", "au", "w64", "flac", "ogg", "mp3")
_OF_ANY_CODING: tuple[Kind, ...] = ("wav", "aiff", "ogg")
"""Kinds that can hold any coding, including those that libsndfile does not know."""
_EMPTY_ID3 = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)


def decode_audio(
    data: bytes,
    settings: DecodeSettings,
    *,
    sample_rate_hz: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Samples:
    """Decode, cut, mix down and resample one clip.

    Args:
        data: the whole file: WAV, FLAC, OGG, MP3, AIFF, CAF, AU, W64, MP4 and MOV, WebM and MKV,
            AAC in ADTS; of a video, the sound.
        settings: limits.
        sample_rate_hz: rate of the result.
        start_s: where the clip starts in the file, in seconds; None: at the beginning.
        end_s: where it ends; None or past the end of the file: at the end.

    Returns:
        `[N]` float32, nominally in [-1, 1].

    Raises:
        RejectError: the file is empty, cannot be decoded, is cut short or outside the limits, has
            no samples in the stretch, or has samples that are not finite or far outside [-1, 1].
    """
    if not data:
        raise RejectError("decode", "the file is empty")
    data = without_id3(data)
    kind = kind_of(data)
    if kind is None:
        raise RejectError("decode", "cannot be decoded (no known kind of audio file)")
    blocks = _read_blocks(data, kind, settings, start_s or 0.0, end_s)
    with closing(blocks):
        return _join(blocks, settings, sample_rate_hz)


def _read_blocks(
    data: bytes, kind: Kind, settings: DecodeSettings, start_s: float, end_s: float | None
) -> Generator[Block, None, None]:
    """The stretch's samples, from the decoder for this kind."""
    if kind == "ogg" and has_damaged_pages(data):
        raise RejectError("decode", "cut short or damaged")
    if kind == "flac" and start_s == 0 and end_s is None:
        block = read_flac(data, min(_BLOCK_VALUES, settings.max_values))
        if block is not None:
            yield block
            return
    file = _open_sndfile(data, kind)
    # FFmpeg reads a FLAC file of unknown length to its end, libsndfile cannot.
    if file is None or file.frames == _FRAMES_UNKNOWN:
        yield from ffmpeg.read_blocks(data, kind, start_s, end_s)
        return
    with file:
        start = round(start_s * file.samplerate)
        end = file.frames if end_s is None else min(round(end_s * file.samplerate), file.frames)
        _check_limits(settings, file.samplerate, max(0, end - start), file.channels)
        if end == file.frames and is_cut(data, kind):
            raise RejectError("decode", "cut short or damaged")
        if 0 < start < end:
            file.seek(start)
        step = max(1, _BLOCK_VALUES // file.channels)
        try:
            for block_start in range(start, end, step):
                size = min(step, end - block_start)
                samples = file.read(size, dtype="float32", always_2d=True)
                if len(samples) < size:
                    raise RejectError("decode", "cut short or damaged")
                yield file.samplerate, samples
        except soundfile.LibsndfileError as error:
            raise _undecodable(error) from error


def _open_sndfile(data: bytes, kind: Kind) -> soundfile.SoundFile | None:
    """The file, opened by libsndfile; None if FFmpeg is to read it."""
    # For an MP3 without a Xing header, libsndfile guesses the length from the first frame.
    if kind not in _SNDFILE_KINDS or (kind == "mp3" and xing_frames(data) is None):
        return None
    # Without an ID3 tag, libsndfile first looks for certain files in the working folder.
    source = io.BytesIO(_EMPTY_ID3 + data if kind == "mp3" else data)
    try:
        file = soundfile.SoundFile(source)
    except soundfile.LibsndfileError as error:
        if kind in _OF_ANY_CODING:
            return None
        raise _undecodable(error) from error
    if kind == "caf" and file.subtype.startswith("ALAC"):
        # libsndfile and FFmpeg each lose the end of such files if the other wrote them.
        raise RejectError("decode", "cannot be decoded (ALAC in CAF)")
    # For an MP3 in a WAV, libsndfile knows no length.
    return None if kind == "wav" and file.subtype.startswith("MPEG") else file


def _undecodable(error: soundfile.LibsndfileError) -> RejectError:
    return RejectError("decode", f"cannot be decoded ({error.error_string})")


def _join(blocks: Iterator[Block], settings: DecodeSettings, sample_rate_hz: int) -> Samples:
    """The blocks as one waveform, mixed down and resampled block by block."""
    parts: list[Samples] = []
    resampler = None
    num_frames = 0
    for file_rate_hz, samples in blocks:
        num_frames += len(samples)
        _check_limits(settings, file_rate_hz, num_frames, samples.shape[1])
        _check_levels(samples)
        mono = _mean_of_channels(samples)
        if file_rate_hz != sample_rate_hz:
            if resampler is None:
                resampler = soxr.ResampleStream(file_rate_hz, sample_rate_hz, 1, dtype="float32")
            mono = resampler.resample_chunk(mono)
        parts.append(mono)
    if num_frames == 0:
        raise RejectError("decode", "no samples in the stretch from start_s to end_s")
    if resampler is not None:
        parts.append(resampler.resample_chunk(np.empty(0, np.float32), last=True))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _check_limits(
    settings: DecodeSettings, rate_hz: int, num_frames: int, num_channels: int
) -> None:
    if not MIN_FILE_RATE_HZ <= rate_hz <= MAX_FILE_RATE_HZ:
        raise RejectError("decode", "the sample rate in the header is out of range")
    if num_frames > settings.max_duration_s * rate_hz:
        raise RejectError("decode", f"longer than {settings.max_duration_s:g} s")
    if num_frames * num_channels > settings.max_values:
        raise RejectError("decode", "more samples, of all channels, than are decoded for one clip")


def _check_levels(samples: Samples) -> None:
    # Makes no copy of the samples, and NaN propagates.
    peak = max(samples.max(initial=0.0), -samples.min(initial=0.0))
    if not np.isfinite(peak):
        raise RejectError("decode", "samples that are NaN or infinite")
    if peak > MAX_LEVEL:
        raise RejectError("decode", "samples far outside [-1, 1]; scale them")


def _mean_of_channels(samples: Samples) -> Samples:
    """`[N, channels]` to `[N]`."""
    if samples.shape[1] == 1:
        return samples[:, 0]
    # Adding channel by channel is many times faster than NumPy's mean over so short an axis.
    total = samples[:, 0].astype(np.float64)
    for channel in range(1, samples.shape[1]):
        total += samples[:, channel]
    mean: Samples = (total / samples.shape[1]).astype(np.float32)
    return mean
