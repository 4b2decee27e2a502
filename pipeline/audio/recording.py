"""A recording of any length as a stream: mono blocks at the sample rate of the fbank.

In: the bytes of a file, or a large file that is open. Steps: those of `pipeline.audio.decode`,
block by block. Out: blocks whose samples equal those of the whole file; an error after all that
precedes a fault.

Memory does not grow with the length. A file of up to `WHOLE_BYTES` is read whole, and examined as
by `prepare`. A larger one stays on disk or in its bucket, and is checked less: a WAV by its header,
any other by its decoder alone, which does not notice all that `pipeline.audio.containers` does.
"""

import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from pipeline.audio import ffmpeg, sndfile, wav
from pipeline.audio.block import Block
from pipeline.audio.containers import kind_of
from pipeline.audio.decode import (
    Mixer,
    Samples,
    as_reject,
    check_rate,
    examined,
    read_blocks,
)
from pipeline.audio.frames import without_id3
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings

WHOLE_BYTES = 200_000_000
"""The largest file that is read into memory."""

_HEAD_BYTES = 2**22
"""Of a larger file: what tells its kind, and holds the header of a WAV."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundBlock:
    """Part of a recording."""

    samples: Samples
    """`[N]` float32 of one channel, nominally in [-1, 1]."""
    file_rate_hz: int
    """Sample rate of the file."""


def decode_stream(
    source: bytes | BinaryIO,
    settings: DecodeSettings,
    *,
    sample_rate_hz: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Generator[SoundBlock, None, None]:
    """Decode, mix down and resample a recording block by block.

    Args:
        source: the whole file, or one larger than `WHOLE_BYTES` that is open and can seek.
        settings: the channel, and whether odd files are rejected; its limits do not apply.
        sample_rate_hz: rate of the result.
        start_s: where the stretch starts, in seconds on the file's clock; None: at the beginning.
        end_s: where it ends; None or past the end of the file: at the end.

    Raises:
        RejectError: as `decode_audio`, after the blocks that precede the fault.
    """
    mixer = Mixer(settings.channel, sample_rate_hz)
    stretch = (start_s or 0.0, end_s)
    try:
        if isinstance(source, bytes):
            blocks = read_blocks(*examined(source, settings), *stretch, _check_header)
        else:
            blocks = _read_large(source, *stretch)
        with closing(blocks):
            for file_rate_hz, samples in blocks:
                check_rate(file_rate_hz)
                yield SoundBlock(
                    samples=mixer.mix(file_rate_hz, samples), file_rate_hz=file_rate_hz
                )
        if not mixer.num_frames:
            raise RejectError("decode", "no samples in the stretch from start_s to end_s")
    except (RejectError, MemoryError, GeneratorExit):
        raise
    except Exception as error:
        raise as_reject(error) from error
    yield SoundBlock(samples=mixer.rest(), file_rate_hz=mixer.file_rate_hz)


def _check_header(rate_hz: int, num_frames: int, num_channels: int) -> None:
    """Nothing but the rate limits a recording."""
    check_rate(rate_hz)


def _read_large(
    file: BinaryIO, start_s: float, end_s: float | None
) -> Generator[Block, None, None]:
    """The samples of a file that is not read whole."""
    head = file.read(_HEAD_BYTES)
    size_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    kind = kind_of(without_id3(head))
    if kind is None:
        raise RejectError("decode", "cannot be decoded (no known kind of audio file)")
    is_cut = False
    if kind == "wav":
        header = wav.read_header(head)
        if header is not None and header.data_bytes:
            is_cut = header.data_start + header.data_bytes > size_bytes
        stretch = sndfile.open_wav(head, start_s, end_s, file)
        if stretch is not None:
            with stretch.file:
                yield from stretch.read_blocks()
            if stretch.reaches_end and is_cut:
                raise RejectError("decode", "cut short or damaged")
            return
        file.seek(0)
    yield from ffmpeg.read_blocks([file], kind, start_s, end_s, is_cut=is_cut)
