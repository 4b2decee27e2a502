"""The header of a FLAC file, read without decoding."""

from typing import NamedTuple

MAGIC = b"fLaC"
HEADER_BYTES = 42
"""The mark of FLAC, a block header, and the 34 bytes of the block STREAMINFO."""


class StreamInfo(NamedTuple):
    """The numbers that decoders rely on; meaningless for a file that is not FLAC."""

    rate_hz: int
    channels: int
    bits: int
    """Bits per sample."""
    num_frames: int
    """Samples per channel; 0: unknown."""


def begins_with_streaminfo(data: bytes) -> bool:
    """Whether the file starts with the mark and a whole STREAMINFO, as the format requires."""
    if len(data) < HEADER_BYTES:
        return False
    return data[:4] == MAGIC and data[4] & 0x7F == 0 and data[5:8] == b"\x00\x00\x22"


def with_num_frames(data: bytes, num_frames: int) -> bytes:
    """The file with that number of samples per channel in its header."""
    packed = int.from_bytes(data[18:26]) >> 36 << 36 | num_frames
    return data[:18] + packed.to_bytes(8) + data[26:]


def read_streaminfo(data: bytes) -> StreamInfo:
    """STREAMINFO, read at its usual offset from a file of at least `HEADER_BYTES`."""
    packed = int.from_bytes(data[18:26])
    return StreamInfo(
        rate_hz=packed >> 44,
        channels=(packed >> 41 & 7) + 1,
        bits=(packed >> 36 & 31) + 1,
        num_frames=packed & (1 << 36) - 1,
    )
