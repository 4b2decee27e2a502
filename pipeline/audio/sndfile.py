"""Stretches by libsndfile: of plain samples and ADPCM in WAV, and of FLAC.

libsndfile reads plain samples ten times as fast as FFmpeg, and finds any place in these files at
once, to the sample. ADPCM it decodes as the standards say, where FFmpeg rounds otherwise or errs.
It finds no place in other codings, and takes some files for another coding than theirs; so the
header is read here, too, and both must agree. Other files are left to FFmpeg.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from pipeline.audio import flac, wav
from pipeline.audio.block import Block

_SUBTYPES = {
    (wav.INTEGER, 8): "PCM_U8",
    (wav.INTEGER, 16): "PCM_16",
    (wav.INTEGER, 24): "PCM_24",
    (wav.INTEGER, 32): "PCM_32",
    (wav.FLOAT, 32): "FLOAT",
    (wav.FLOAT, 64): "DOUBLE",
    (wav.MS_ADPCM, 4): "MS_ADPCM",
    (wav.IMA_ADPCM, 4): "IMA_ADPCM",
}
_BLOCK_VALUES = 2**22
"""Samples of a block: few enough for memory, enough for usual clips: each block costs a seek."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """An open file, and which of its samples to read."""

    file: soundfile.SoundFile
    """At its first sample."""
    num_frames: int
    """Samples per channel, 0 if the stretch is outside the file."""
    reaches_end: bool
    """Whether the file has no samples after it."""
    integers: npt.NDArray[np.int16] | None = None
    """Its samples `[num_frames, channels]`, where they stand in memory as 16-bit integers."""

    @property
    def rate_hz(self) -> int:
        """Sample rate of the file."""
        return int(self.file.samplerate)

    @property
    def num_channels(self) -> int:
        """Channels of the file."""
        return int(self.file.channels)

    def read_blocks(self) -> Iterator[Block]:
        """The samples in blocks.

        Raises:
            soundfile.LibsndfileError, EOFError: they cannot be decoded, or are not all there.
        """
        step = max(1, _BLOCK_VALUES // self.num_channels)
        for block_start in range(0, self.num_frames, step):
            size = min(step, self.num_frames - block_start)
            if self.integers is not None:
                samples = self.integers[block_start : block_start + size].astype(np.float32)
                samples *= np.float32(2**-15)
            else:
                samples = self.file.read(size, dtype="float32", always_2d=True)
            if len(samples) < size:
                raise EOFError
            yield self.rate_hz, samples


def open_wav(
    data: bytes, start_s: float, end_s: float | None, file: BinaryIO | None = None
) -> Stretch | None:
    """A stretch of plain samples; None if FFmpeg is to read the file.

    Args:
        data: the file, or if `file` is given, at least all that precedes its samples.
        start_s: where the stretch starts.
        end_s: where it ends; None: at the end of the file.
        file: to read the samples from.
    """
    header = wav.read_header(data)
    if header is None or not header.data_bytes:
        return None
    subtype = _SUBTYPES.get((header.coding, header.bits))
    if subtype is None:
        return None
    num_frames = None
    if header.coding in (wav.INTEGER, wav.FLOAT):
        frame_bytes = header.channels * header.bits // 8
        if not frame_bytes or header.frame_bytes != frame_bytes:
            return None
        num_frames = header.data_bytes // frame_bytes
    expected = (subtype, header.channels, header.rate_hz, num_frames)
    stretch = _open(file or io.BytesIO(data), expected, start_s, end_s)
    if stretch is None or file is not None or subtype != "PCM_16":
        return stretch
    return replace(stretch, integers=_integers(data, header, stretch))


def _integers(data: bytes, header: wav.WavHeader, stretch: Stretch) -> npt.NDArray[np.int16]:
    """The 16-bit samples of a stretch.

    libsndfile, which has the same length, calls back for every 8 KB of them, which takes four times
    as long. It opens no file with several parts that hold samples.
    """
    dtype = np.dtype(np.int16).newbyteorder("<" if header.order == "little" else ">")
    start = header.data_start + stretch.file.tell() * header.frame_bytes
    count = stretch.num_frames * header.channels
    return np.frombuffer(data, dtype, count, start).reshape(-1, header.channels)


def open_flac(data: bytes, start_s: float, end_s: float) -> Stretch | None:
    """A stretch of a FLAC file; None if FFmpeg is to read it from its beginning."""
    info = flac.read_usual_info(data)
    if info is None or round(end_s * info.rate_hz) > info.num_frames:
        return None
    expected = (f"PCM_{info.bits}", info.channels, info.rate_hz, info.num_frames)
    return _open(io.BytesIO(data), expected, start_s, end_s)


def _open(
    source: BinaryIO,
    expected: tuple[str, int, int, int | None],
    start_s: float,
    end_s: float | None,
) -> Stretch | None:
    """The file at the start of a stretch, if its coding, channels, rate and length are these.

    A length of None is not compared.
    """
    try:
        file = soundfile.SoundFile(source)
        num_frames = None if expected[-1] is None else file.frames
        if (file.subtype, file.channels, file.samplerate, num_frames) != expected:
            file.close()
            return None
        start = round(start_s * file.samplerate)
        end = file.frames if end_s is None else min(round(end_s * file.samplerate), file.frames)
        if 0 < start < end:
            file.seek(start)
    except soundfile.LibsndfileError:
        return None
    return Stretch(file=file, num_frames=max(0, end - start), reaches_end=end == file.frames)
