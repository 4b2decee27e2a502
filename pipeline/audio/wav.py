"""The header of a WAV file (RIFF, RIFX, RF64, BW64), read without decoding."""

from typing import Literal, NamedTuple

from pipeline.audio.rejects import RejectError
from pipeline.audio.structure import Structure

UNKNOWN_BYTES = 0x7FFF0000
"""Programs that do not know the length yet write a 32-bit length of at least this."""

INTEGER, MS_ADPCM, FLOAT, IMA_ADPCM = 1, 2, 3, 0x11
"""Numbers of codings; integers and floats are plain samples."""
_EXTENSIBLE = 0xFFFE
_GUID_END = bytes.fromhex("000000001000800000aa00389b71")
"""What follows the coding's number in the header of an extensible WAV."""

Order = Literal["little", "big"]


class WavHeader(NamedTuple):
    """Where the samples are, and how they are coded."""

    order: Order
    coding: int
    """The number of the coding, that inside an extensible header if it is one."""
    channels: int
    rate_hz: int
    frame_bytes: int
    bits: int
    data_start: int
    data_bytes: int | None
    """Length of the samples; None: not known when it was written."""


def read_header(data: bytes) -> WavHeader | None:
    """The header; None if its parts do not follow each other up to the samples."""
    order: Order = "big" if data[:4] == b"RIFX" else "little"

    def number(offset: int, size: int) -> int:
        return int.from_bytes(data[offset : offset + size], order)

    offset, fmt, long_bytes = 12, None, 0
    while (body := offset + 8) <= len(data):
        name, size = data[offset : offset + 4], number(offset + 4, 4)
        if name == b"ds64":
            long_bytes = number(body + 8, 8)
        elif name == b"fmt " and size >= 16:
            coding = number(body, 2)
            if coding == _EXTENSIBLE and data[body + 26 : body + 40] == _GUID_END:
                coding = number(body + 24, 2)
            sizes = (number(body + 2, 2), number(body + 4, 4), number(body + 12, 2))
            fmt = (order, coding, *sizes, number(body + 14, 2))
        elif name == b"data" and fmt is not None:
            if data[:4] in (b"RF64", b"BW64") and size == 0xFFFFFFFF:
                return WavHeader(*fmt, body, long_bytes)
            return WavHeader(*fmt, body, None if size >= UNKNOWN_BYTES else size)
        offset = body + size + (size & 1)
    return None


def examine(data: bytes) -> Structure:
    """Walk the parts of a WAV file; one without the length of its samples is given it."""
    header = read_header(data)
    if header is None:
        return Structure([data], is_cut=True)
    available = len(data) - header.data_start
    if header.data_bytes is None:
        return Structure([_with_length(data, header, available)])
    if header.data_bytes == 0:
        if not available or _are_chunks(data, header):
            raise RejectError("decode", "no samples in it")
        repairs = ("no length in its header",)
        return Structure([_with_length(data, header, available)], repairs=repairs)
    size = header.data_bytes - header.data_bytes % max(1, header.frame_bytes)
    end = header.data_start + header.data_bytes + (header.data_bytes & 1)
    # Of several parts with samples, decoders read one or another.
    return Structure([data], is_cut=size > available or data[end : end + 4] == b"data")


def _with_length(data: bytes, header: WavHeader, num_bytes: int) -> bytes:
    """The file with another length of its samples, in whole samples."""
    num_bytes -= num_bytes % max(1, header.frame_bytes)
    size = min(num_bytes, UNKNOWN_BYTES - 1).to_bytes(4, header.order)
    return data[: header.data_start - 4] + size + data[header.data_start :]


def _are_chunks(data: bytes, header: WavHeader) -> bool:
    """Whether further parts follow the header up to the end of the file."""
    offset = header.data_start
    while (name := data[offset : offset + 4]) and all(32 <= byte < 127 for byte in name):
        size = int.from_bytes(data[offset + 4 : offset + 8], header.order)
        offset += 8 + size + (size & 1)
    return offset in (len(data), len(data) + 1)
