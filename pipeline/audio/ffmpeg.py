"""Decoding by FFmpeg: all that is coded in frames, and the rarer files of plain samples.

Bytes of a file -> its best audio stream -> the stretch's samples in blocks. FFmpeg drops the
encoder's delay and applies edit lists. A damaged packet, a gap between timestamps, or fewer samples
than the header declares reject the file.

Time is that of the file: 0 is where the first of its streams starts, as for FFmpeg's own `-ss`. So
where the sound of a video starts late, so do its samples.

A stretch equals that part of the whole: most codings carry state from frame to frame, so decoding
starts at the beginning of the file. Only plain samples are decoded from the stretch on.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition

from pipeline.audio import video
from pipeline.audio.block import Block
from pipeline.audio.containers import Kind
from pipeline.audio.rejects import RejectError

# Given explicitly, so that FFmpeg tries no other format: some of them open further files.
_FORMATS: dict[Kind, str] = {
    "wav": "wav",
    "aiff": "aiff",
    "caf": "caf",
    "au": "au",
    "w64": "w64",
    "flac": "flac",
    "ogg": "ogg",
    "mp3": "mp3",
    "adts": "aac",
    "mp4": "mov",
    "matroska": "matroska",
    "sphere": "nistsphere",
    "wavpack": "wv",
    "tta": "tta",
    "amr": "amr",
    "asf": "asf",
    "avi": "avi",
    "flv": "flv",
    "mpegts": "mpegts",
}
_EXACTLY_TIMED: tuple[Kind, ...] = ("aiff", "caf", "au", "w64", "sphere", "mp4")
"""Kinds in which a place among plain samples is found to the sample."""
_SAMPLES_IN_ONE_PART: tuple[Kind, ...] = ("wav", "aiff", "caf", "au", "w64")
"""Kinds of which a part of known length has all samples, or all the rest of the file."""
_WITHOUT_DURATION: tuple[Kind, ...] = (
    *_SAMPLES_IN_ONE_PART,
    *("avi", "mp3", "adts", "amr", "mpegts"),
)
"""Kinds that state the length in bytes, or not at all."""
_WITH_NUM_SAMPLES: tuple[Kind, ...] = ("flac", "ogg", "mp4", "sphere", "wavpack", "tta")
"""Kinds that count the samples of lossless codings; others count time or packets."""
_STRICT = {"err_detect": "crccheck+bitstream+explode"}
_STRICT_MPEG = {"err_detect": "crccheck+explode"}
"""For MPEG layers: their decoder reports no more with `bitstream`, but silences nearly all of a
frame whose length is a few bits too small, as the encoder Shine writes them."""

_BLOCK_VALUES = 2**18
_SEEK_AHEAD_S = 0.1
_MISSING_S = 0.1
"""A stream may be this much shorter than its header says: most headers count padding, too."""
_LOSSLESS = ("pcm_", "flac", "alac", "wavpack", "tta")
_SKIP = "skip_samples"
_OPUS_RATE_HZ = 48_000
"""Opus counts at this rate, whatever the rate of its input was."""
_BATCH_SAMPLES = 2**15
_GAP_FRAMES = 0.75
"""A larger jump of the timestamps, in frames, is a lost packet, if it is longer than `_GAP_S`."""
_GAP_S = 0.003
"""Shorter jumps of the timestamps are rounding."""

_DTYPES: dict[str, npt.DTypeLike] = {
    "u8": np.uint8,
    "s16": np.int16,
    "s32": np.int32,
    "s64": np.int64,
    "flt": np.float32,
    "dbl": np.float64,
}
_MISREAD_FROM_CHANNELS = 8
"""From this many channels on, PyAV 18 reads past the list of a frame's planes, and crashes."""

_Numbered = tuple[int, int, npt.NDArray[np.float32]]
"""Sample rate in Hz, index of the first sample on the file's clock, samples `[N, channels]`."""


def read_blocks(
    recordings: Sequence[bytes | BinaryIO],
    kind: Kind,
    start_s: float,
    end_s: float | None,
    *,
    is_cut: bool,
) -> Iterator[Block]:
    """The samples from `start_s` to `end_s` or the end of the file, in blocks.

    All that precedes a fault is yielded before the error.

    Args:
        recordings: the file, or its parts if several recordings follow each other in it.
        kind: of the file.
        start_s: where the stretch starts, in seconds on the file's clock.
        end_s: where it ends; None: at the end of the file.
        is_cut: the file is rejected if the stretch reaches its end.

    Raises:
        RejectError: the file cannot be decoded, has no audio, or is cut short or damaged.
    """
    parts: list[npt.NDArray[np.float32]] = []
    rate_hz, num_values = 1, 0
    fault: RejectError | None = None
    try:
        for rate_hz, index, samples in _chained(recordings, kind, start_s):
            start = round(start_s * rate_hz)
            end = None if end_s is None else round(end_s * rate_hz)
            wanted = samples[max(0, start - index) : end and max(0, end - index)]
            if len(wanted):
                parts.append(wanted)
                num_values += wanted.size
            if end is not None and index + len(samples) >= end:
                break
            if num_values >= _BLOCK_VALUES:
                yield rate_hz, np.concatenate(parts)
                parts, num_values = [], 0
        else:
            if is_cut:
                fault = RejectError("decode", "cut short or damaged")
    except RejectError as error:
        fault = error
    except av.FFmpegError as error:
        fault = RejectError("decode", f"cannot be decoded ({error.strerror})")
        fault.__cause__ = error
    if parts:
        yield rate_hz, np.concatenate(parts)
    if fault is not None:
        raise fault


def _chained(
    recordings: Sequence[bytes | BinaryIO], kind: Kind, start_s: float
) -> Iterator[_Numbered]:
    """The samples of recordings, numbered throughout."""
    base = end = 0
    before = None
    for data in recordings:
        seek_s = start_s if len(recordings) == 1 else 0.0
        for rate_hz, index, samples in _recording(data, kind, seek_s):
            if before not in (None, (rate_hz, samples.shape[1])):
                raise RejectError("decode", "its sample rate or channels change midway")
            before = rate_hz, samples.shape[1]
            yield rate_hz, base + index, samples
            end = base + index + len(samples)
        base = end


def _recording(data: bytes | BinaryIO, kind: Kind, start_s: float) -> Iterator[_Numbered]:
    """The samples of one recording, from its beginning or from shortly before `start_s`."""
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    with av.open(file, "r", format=_FORMATS[kind], metadata_errors="ignore") as container:
        stream = _audio_stream(container)
        coding = stream.codec_context.name
        if kind == "caf" and coding == "alac":
            # FFmpeg loses the end of some of those that libsndfile wrote.
            raise RejectError("decode", "cannot be decoded (ALAC in CAF)")
        clock_s = None
        if coding.startswith("pcm_") and kind in _EXACTLY_TIMED and start_s > _SEEK_AHEAD_S:
            clock_s = _clock_start_s(container, stream, _start_s(stream))
            ahead_s = clock_s + start_s - _SEEK_AHEAD_S
            container.seek(int(ahead_s / stream.time_base), stream=stream)
        is_live = isinstance(data, bytes) and video.is_live_asf(data)
        has_duration = kind not in _WITHOUT_DURATION and not is_live
        declared_s = _declared_s(container, stream) if has_duration else 0.0
        rate_hz, end_s = 1, declared_s  # of a stretch behind the end, nothing is decoded
        for rate_hz, index, samples in _numbered_frames(container, stream, kind, clock_s):
            if kind == "ogg" and coding != "opus":
                # FFmpeg keeps the padding of a short file's last packet.
                samples = samples[: max(0, round(declared_s * rate_hz) - index)]
            yield rate_hz, index, samples
            end_s = (index + len(samples)) / rate_hz
        is_exact = kind in _WITH_NUM_SAMPLES and coding.startswith(_LOSSLESS)
        missing_s = 0.4 / rate_hz + stream.time_base / 2 if is_exact else _MISSING_S
        if end_s < declared_s - missing_s:
            raise RejectError("decode", "cut short or damaged")


def _audio_stream(container: Any) -> Any:
    """The stream to decode."""
    stream = container.streams.best("audio")
    if stream is None:
        raise RejectError("decode", "no audio in it")
    if stream.codec_context is None:
        raise RejectError("decode", "cannot be decoded (unknown coding)")
    is_mpeg = stream.codec_context.name.startswith(("mp1", "mp2", "mp3"))
    stream.codec_context.options = _STRICT_MPEG if is_mpeg else _STRICT
    return stream


def _start_s(stream: Any) -> float:
    return float((stream.start_time or 0) * stream.time_base)


def _clock_start_s(container: Any, stream: Any, first_s: float) -> float:
    """Where time 0 of the file is, given the time of the first sample."""
    others = [
        _start_s(other)
        for other in (*container.streams.audio, *container.streams.video)
        if other.index != stream.index
        and other.start_time is not None
        and not other.disposition & Disposition.attached_pic
    ]
    return min(first_s, *others) if others else first_s


def _declared_s(container: Any, stream: Any) -> float:
    """Length of the audio by its header, in seconds; 0 if the header has none."""
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    is_only_stream = len(container.streams) == 1 and container.duration is not None
    return float(container.duration / av.time_base) if is_only_stream else 0.0


def _batches(container: Any, stream: Any, kind: Kind) -> Iterator[list[Any]]:
    """Frames, many at once: handling each by itself takes as long as decoding it."""
    batch: list[Any] = []
    num_samples = 0
    try:
        for packet in container.demux(stream):
            if kind == "matroska" and stream.codec_context.name == "opus":
                _set_opus_delay(packet, stream.codec_context.extradata or b"")
            frames = packet.decode()
            # Of all the rest of a file, the last packet is smaller than FFmpeg expects.
            if packet.is_corrupt and kind not in _SAMPLES_IN_ONE_PART:
                raise RejectError("decode", "cut short or damaged")
            for frame in frames:
                if frame.is_corrupt:
                    raise RejectError("decode", "cut short or damaged")
                batch.append(frame)
                num_samples += frame.samples
            if num_samples >= _BATCH_SAMPLES:
                yield batch
                batch, num_samples = [], 0
    except (RejectError, av.FFmpegError) as error:
        # What precedes the fault may be all that is wanted.
        yield batch
        raise error from None
    yield batch


def _set_opus_delay(packet: Any, header: bytes) -> None:
    """Drop as many samples at the start as the header of Opus says (RFC 7845, section 5.1).

    FFmpeg goes by Matroska's CodecDelay, which older versions of it wrote too small for sound that
    came at another rate than 48 kHz.
    """
    if not packet.has_sidedata(_SKIP) or len(header) < 12:
        return
    side_data = packet.get_sidedata(_SKIP)
    content = bytearray(bytes(side_data))
    dropped = int.from_bytes(content[:4], "little")
    if dropped:  # the last packet has samples to drop at its end alone
        delay = int.from_bytes(header[10:12], "little")
        content[:4] = delay.to_bytes(4, "little")
        side_data.update(bytes(content))
        packet.set_sidedata(side_data)
        # FFmpeg has moved the time by its delay, too.
        packet.pts -= round((delay - dropped) / _OPUS_RATE_HZ / packet.time_base)


def _numbered_frames(
    container: Any, stream: Any, kind: Kind, clock_s: float | None
) -> Iterator[_Numbered]:
    """The samples of some frames, numbered from where the file's clock starts.

    Samples are counted from the first frame: timestamps of WebM are rounded to a millisecond.

    Args:
        container: the file.
        stream: of the file.
        kind: of the file.
        clock_s: where the file's clock starts; None: by the first frame, which is the stream's.
    """
    rate_hz = num_channels = index = 0
    expected_s = 0.0
    for frames in filter(None, _batches(container, stream, kind)):
        if rate_hz == 0:
            rate_hz, num_channels = frames[0].sample_rate, frames[0].layout.nb_channels
            first_s = frames[0].time or 0.0
            if clock_s is None:
                clock_s = _clock_start_s(container, stream, first_s)
            index = round((first_s - clock_s) * rate_hz)
            expected_s = first_s
        samples = _samples(frames, rate_hz, num_channels)
        # The pages of Ogg are numbered, and FFmpeg sets wrong times for those at the end.
        if kind != "ogg":
            expected_s = _check_times(frames, rate_hz, expected_s)
        yield rate_hz, index, samples
        index += len(samples)


def _check_times(frames: list[Any], rate_hz: int, expected_s: float) -> float:
    """When the next frame is due, if each of these follows the one before.

    Raises:
        RejectError: there is a gap between two.
    """
    time_base_s = float(frames[0].time_base or 0)
    for frame in frames:
        duration_s = frame.samples / rate_hz
        if frame.pts is not None:
            time_s = frame.pts * time_base_s
            if abs(time_s - expected_s) > max(_GAP_FRAMES * duration_s, _GAP_S):
                raise RejectError("decode", "a gap between its timestamps")
            expected_s = time_s
        expected_s += duration_s
    return expected_s


def _samples(frames: list[Any], rate_hz: int, num_channels: int) -> npt.NDArray[np.float32]:
    """`[N, channels]` samples of frames, nominally in [-1, 1].

    Raises:
        RejectError: the sample rate or the channels change.
    """
    if any((f.sample_rate, f.layout.nb_channels) != (rate_hz, num_channels) for f in frames):
        raise RejectError("decode", "its sample rate or channels change midway")
    if frames[0].format.is_planar and num_channels >= _MISREAD_FROM_CHANNELS:
        resampler = av.AudioResampler(format=frames[0].format.packed.name)
        frames = [packed for frame in frames for packed in resampler.resample(frame)]
    planes = [(frame.planes, frame.samples) for frame in frames]
    dtype = _DTYPES[frames[0].format.packed.name]
    if frames[0].format.is_planar:
        channels = [
            np.concatenate([np.frombuffer(of_frame[c], dtype, num) for of_frame, num in planes])
            for c in range(num_channels)
        ]
        values = np.stack(channels, axis=1) if num_channels > 1 else channels[0][:, np.newaxis]
    else:
        values = np.concatenate(
            [np.frombuffer(plane, dtype, num * num_channels) for (plane,), num in planes]
        ).reshape(-1, num_channels)
    floats = values.astype(np.float32, copy=False)
    if values.dtype == np.uint8:
        return floats / np.float32(128) - np.float32(1)
    if values.dtype.kind == "i":
        return floats / np.float32(-float(np.iinfo(values.dtype).min))
    return floats
