"""Decoding by FFmpeg what libsndfile cannot read: AAC, WebM, the sound of videos, ...

Bytes of a file -> its best audio stream -> the stretch's samples in blocks. Time starts at the
first sample that FFmpeg returns, which has already dropped encoder delay and applied edit lists. A
damaged packet, a gap between timestamps, or fewer samples than the header declares reject the file;
if the stretch reaches the end of the file, `containers.is_cut` checks it, too.
"""

import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.audio.containers import Kind, is_cut
from pipeline.audio.rejects import RejectError

Block = tuple[int, npt.NDArray[np.float32]]
"""Sample rate in Hz, and samples `[N, channels]`."""

# Given explicitly, so that FFmpeg tries no other format: some of them open further files.
_FORMATS: dict[Kind, str] = {
    "wav": "wav",
    "aiff": "aiff",
    "flac": "flac",
    "ogg": "ogg",
    "mp3": "mp3",
    "adts": "aac",
    "mp4": "mov",
    "matroska": "matroska",
}
_KINDS_WITHOUT_LENGTH: tuple[Kind, ...] = ("mp3", "adts")
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}

_BLOCK_VALUES = 2**18
_SEEK_AHEAD_S = 1.0
"""Decoded ahead of a stretch and dropped: decoders need a few packets to settle."""
_MISSING_S = 0.1
"""A stream may be this much shorter than its header says: headers count padding, too."""
_GAP_FRAMES = 0.75
"""A larger jump of the timestamps, in frames, is a lost packet, if it is longer than `_GAP_S`."""
_GAP_S = 0.003
"""Shorter jumps of the timestamps are rounding."""

_MISREAD_FROM_CHANNELS = 8
"""From this many channels on, PyAV 18 reads past the list of a frame's planes, and crashes."""


def read_blocks(data: bytes, kind: Kind, start_s: float, end_s: float | None) -> Iterator[Block]:
    """The samples from `start_s` to `end_s` or the end of the file, in blocks.

    Raises:
        RejectError: the file cannot be decoded, has no audio, or is cut short or damaged.
    """
    if kind not in _FORMATS:
        raise RejectError("decode", "cannot be decoded (unknown coding)")
    sample_index, rate_hz, declared_s = 0, 1, 0.0
    parts: list[npt.NDArray[np.float32]] = []
    try:
        with av.open(
            io.BytesIO(data), "r", format=_FORMATS[kind], metadata_errors="ignore"
        ) as container:
            stream = _audio_stream(container)
            if kind not in _KINDS_WITHOUT_LENGTH:
                declared_s = _declared_s(container, stream)
            origin_s = None
            # Only MP4 has the exact time of each packet: other kinds are decoded from the start.
            if kind == "mp4" and start_s > _SEEK_AHEAD_S:
                origin_s = float((stream.start_time or 0) * stream.time_base)
                ahead_s = origin_s + start_s - _SEEK_AHEAD_S
                container.seek(int(ahead_s / stream.time_base), stream=stream)
            for rate_hz, sample_index, samples in _numbered_frames(
                _frames(container, stream), origin_s
            ):
                start = round(start_s * rate_hz)
                end = None if end_s is None else round(end_s * rate_hz)
                wanted = samples[max(0, start - sample_index) : end and max(0, end - sample_index)]
                sample_index += len(samples)
                if len(wanted):
                    parts.append(wanted)
                if end is not None and sample_index >= end:
                    break
                if sum(part.size for part in parts) >= _BLOCK_VALUES:
                    yield rate_hz, np.concatenate(parts)
                    parts.clear()
            else:
                if sample_index < (declared_s - _MISSING_S) * rate_hz or is_cut(data, kind):
                    raise RejectError("decode", "cut short or damaged")
    except av.FFmpegError as error:
        raise RejectError("decode", f"cannot be decoded ({error.strerror})") from error
    if parts:
        yield rate_hz, np.concatenate(parts)


def _audio_stream(container: Any) -> Any:
    """The stream to decode."""
    stream = container.streams.best("audio")
    if stream is None:
        raise RejectError("decode", "no audio in it")
    if stream.codec_context is None:
        raise RejectError("decode", "cannot be decoded (unknown coding)")
    stream.codec_context.options = _STRICT
    return stream


def _declared_s(container: Any, stream: Any) -> float:
    """Length of the audio by its header, in seconds; 0 if the header has none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    is_only_stream = len(container.streams) == 1 and container.duration is not None
    return float(container.duration / av.time_base) if is_only_stream else 0.0


def _frames(container: Any, stream: Any) -> Iterator[Any]:
    for packet in container.demux(stream):
        frames = packet.decode()
        if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
            raise RejectError("decode", "cut short or damaged")
        yield from frames


def _numbered_frames(
    frames: Iterator[Any], origin_s: float | None
) -> Iterator[tuple[int, int, npt.NDArray[np.float32]]]:
    """Each frame's rate, the index of its first sample in the stream, and its samples.

    Samples are counted from the first frame: timestamps of WebM are rounded to a millisecond.
    """
    sample_index = expected = 0
    rate_hz = num_channels = None
    for frame in frames:
        samples = _samples(frame)
        if rate_hz is None:
            rate_hz, num_channels = frame.sample_rate, samples.shape[1]
            start_s = frame.time or 0.0
            origin_s = start_s if origin_s is None else origin_s
            sample_index = expected = round((start_s - origin_s) * rate_hz)
        elif (rate_hz, num_channels) != (frame.sample_rate, samples.shape[1]):
            raise RejectError("decode", "its sample rate or channels change midway")
        actual = expected if frame.time is None else round((frame.time - origin_s) * rate_hz)
        if abs(actual - expected) > max(_GAP_FRAMES * len(samples), _GAP_S * rate_hz):
            raise RejectError("decode", "a gap between its timestamps")
        yield rate_hz, sample_index, samples
        sample_index += len(samples)
        expected = actual + len(samples)


def _samples(frame: Any) -> npt.NDArray[np.float32]:
    """`[N, channels]` samples of a frame, nominally in [-1, 1]."""
    num_channels = frame.layout.nb_channels
    if frame.format.is_planar and num_channels >= _MISREAD_FROM_CHANNELS:
        (frame,) = av.AudioResampler(format="flt").resample(frame)
    values = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, num_channels)
    if values.dtype == np.uint8:
        values = values.astype(np.int16) - 128
        return np.asarray(values / 128, np.float32)
    if values.dtype.kind == "i":
        return np.asarray(values / -float(np.iinfo(values.dtype).min), np.float32)
    return np.asarray(values, np.float32)
