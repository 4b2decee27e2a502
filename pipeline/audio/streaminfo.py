"""What a FLAC file says of itself at its start, before anything of it is decoded."""

from typing import NamedTuple

MAGIC = b"fLaC"
HEADER_BYTES = 42
"""The mark of a FLAC file, a block's header, and the 34 bytes of the block STREAMINFO."""


class StreamInfo(NamedTuple):
    """The numbers that decoders go by; of a file that is no FLAC they mean nothing."""

    rate_hz: int
    channels: int
    bits: int
    """Of a sample."""
    num_frames: int
    """Samples of each channel; 0: not known."""


def begins_with_streaminfo(data: bytes) -> bool:
    """Whether the mark and STREAMINFO, whole, come first, as the format asks."""
    if len(data) < HEADER_BYTES:
        return False
    return data[:4] == MAGIC and data[4] & 0x7F == 0 and data[5:8] == b"\x00\x00\x22"


def read_streaminfo(data: bytes) -> StreamInfo:
    """STREAMINFO of a file of at least `HEADER_BYTES`, where it should stand."""
    packed = int.from_bytes(data[18:26])
    return StreamInfo(
        rate_hz=packed >> 44,
        channels=(packed >> 41 & 7) + 1,
        bits=(packed >> 36 & 31) + 1,
        num_frames=packed & (1 << 36) - 1,
    )
