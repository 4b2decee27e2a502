"""FLAC files: where they end, and whole ones by dr_flac, which is faster than other decoders.

A header can count fewer samples than the file has, and recordings can follow each other. Decoders
that go by the header then stop early. The frames tell: the header of each has its number and a
checksum (RFC 9639, section 9.1). dr_flac skips frames whose checksum is wrong; a file that yields
fewer samples than its header promises is left to FFmpeg, which reports what is wrong.
"""

import re

import miniaudio
import numpy as np

from pipeline.audio.block import Block
from pipeline.audio.streaminfo import (
    HEADER_BYTES,
    MAGIC,
    StreamInfo,
    begins_with_streaminfo,
    read_streaminfo,
    with_num_frames,
)
from pipeline.audio.structure import SEVERAL, Structure

_MAX_BITS = 24
"""Samples with more bits are not exact in float32."""
_MAGIC = re.compile(re.escape(MAGIC))
_SYNCS = (b"\xff\xf8", b"\xff\xf9")
"""Start of a frame: of a fixed size, and of any size."""
_MOST_TAG_BYTES = 256
"""Most tags after the last frame are smaller."""
_TAIL_BYTES = 2**20
"""The last frame starts within so many bytes of the end: frames are smaller, and so are tags."""


def examine(data: bytes) -> Structure:
    """Find the recordings in a file; a header that counts too few samples is given the number."""
    recordings = _split(data)
    repairs = () if len(recordings) == 1 else SEVERAL
    for number, recording in enumerate(recordings):
        if not begins_with_streaminfo(recording):
            continue
        declared, count = read_streaminfo(recording).num_frames, count_frames(recording)
        if count is not None and declared < count < 2**36:
            recordings[number] = with_num_frames(recording, count)
            if declared:
                repairs = (*repairs, "more samples than its header counts")
    return Structure(recordings, repairs=repairs)


def count_frames(data: bytes) -> int | None:
    """Samples per channel by the number in the last frame; None if no frame is found.

    Of one recording, whose header is of the usual form.
    """
    largest_frame = int.from_bytes(data[15:18])
    for tail_bytes in (largest_frame + _MOST_TAG_BYTES, _TAIL_BYTES):
        end = len(data)
        earliest = max(HEADER_BYTES, end - tail_bytes)
        while True:
            place = max(data.rfind(sync, earliest, end) for sync in _SYNCS)
            if place < 0:
                break
            count = _count_after(data, place)
            if count is not None:
                return count
            end = place + 1
    return None


def read_usual_info(data: bytes) -> StreamInfo | None:
    """STREAMINFO; None if decoders other than FFmpeg may not get along with it."""
    if not begins_with_streaminfo(data):
        return None
    info = read_streaminfo(data)
    return info if info.num_frames > 0 and info.rate_hz and info.bits <= _MAX_BITS else None


def read_flac(data: bytes, max_values: int) -> Block | None:
    """Sample rate in Hz and `[N, channels]` float32 samples, the same as FFmpeg gives.

    None if its header is unusual, if there are more than `max_values` samples over all channels, or
    if it yields fewer than its header says.
    """
    info = read_usual_info(data)
    if info is None or info.num_frames * info.channels > max_values:
        return None
    has_16_bits = info.bits <= 16
    try:
        # Half the memory is copied on the way if 16 bits hold the samples.
        read = miniaudio.flac_read_s16 if has_16_bits else miniaudio.flac_read_f32
        decoded = read(data)
    except miniaudio.DecodeError:
        return None
    if (decoded.sample_rate, decoded.nchannels) != (info.rate_hz, info.channels):
        return None
    if len(decoded.samples) != info.num_frames * info.channels:
        return None
    if has_16_bits:
        samples = np.frombuffer(decoded.samples, np.int16).astype(np.float32)
        samples *= np.float32(2**-15)
    else:
        samples = np.frombuffer(decoded.samples, np.float32)
    return info.rate_hz, samples.reshape(-1, info.channels)


def _split(data: bytes) -> list[bytes]:
    """The recordings in the file, one after the other; usually one."""
    # Every file is searched: a regular expression takes half as long as `bytes.find`, and less than
    # NumPy on data that are not in the cache yet.
    matches = _MAGIC.finditer(data, len(MAGIC))
    starts = [
        match.start()
        for match in matches
        if begins_with_streaminfo(data[match.start() : match.start() + HEADER_BYTES])
    ]
    if not starts:
        return [data]
    starts = [0, *starts]
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)]


def _count_after(data: bytes, place: int) -> int | None:
    """Samples up to the end of the frame whose header stands at `place`; None if none does."""
    header = data[place : place + 16]
    if len(header) < 6:
        return None
    size_code, rate_code = header[2] >> 4, header[2] & 15
    number_bytes = max(1, 8 - (header[4] ^ 0xFF).bit_length())
    after_number = 4 + number_bytes
    size_bytes = {6: 1, 7: 2}.get(size_code, 0)
    end = after_number + size_bytes + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if (
        size_code == 0
        or rate_code == 15
        or len(header) <= end
        or _crc8(header[:end]) != header[end]
    ):
        return None
    number = header[4] & (0x7F if number_bytes == 1 else 0x7F >> number_bytes)
    for byte in header[5:after_number]:
        number = number << 6 | byte & 0x3F
    if size_bytes:
        size = int.from_bytes(header[after_number : after_number + size_bytes]) + 1
    elif size_code == 1:
        size = 192
    else:
        size = 576 << (size_code - 2) if size_code < 6 else 256 << (size_code - 8)
    has_fixed_size = header[1] == 0xF8
    usual_size = int.from_bytes(data[8:10])
    return (number * usual_size if has_fixed_size else number) + size


def _crc8(data: bytes) -> int:
    """Checksum of a frame's header, with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc << 1 ^ (0x107 if crc & 0x80 else 0)
    return crc
