"""MP3 and ADTS files as a sequence of frames, cleared of all other bytes.

In: the bytes of the file. Each frame's header gives its length, and so the place of the next one.
Steps: skip what precedes the first frame; walk from frame to frame, over tags between them, to the
last. Out: the frames alone, whether some are missing, and what was odd. Decoders that look for the
next frame by themselves lose a frame at such a tag, and keep the encoder's delay and padding.

Frames are missing where the last one is not complete, where unknown bytes stand between two, where
the Xing header of an MP3 counts more frames and more bytes, and where no such header counts the
frames and other bytes than text or a tag follow the last one.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from pipeline.audio.structure import Structure

FrameKind = Literal["mp3", "adts"]

_MP3_RATES_HZ = (44_100, 48_000, 32_000)
_MP3_KBPS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_CONSTANT_BITS = {"mp3": 0xFFFE0C00, "adts": 0xFFF6FC00}
"""Bits of a header's first four bytes that are equal in all frames: kind and sample rate."""

_MAX_JUNK_BYTES = 65_536
"""A first frame is looked for in so many bytes, as FFmpeg does."""
_SURE_FRAMES = 3
"""So many frames in a row are no accident."""


def without_id3(data: bytes) -> bytes:
    """The file without any ID3v2 tags at its start."""
    start = 0
    while (size := _id3_bytes(data, start)) > 0:
        start += size
    return data[start:]


def frame_kind(data: bytes) -> FrameKind | None:
    """The kind of the frames in a file without a leading ID3 tag; None if it has none."""
    for kind in ("mp3", "adts"):
        if _first_frame(data, kind) is not None:
            return kind
    return None


def examine(data: bytes, kind: FrameKind) -> Structure:
    """Walk all frames of a file of that kind."""
    frame_bytes = _FRAME_BYTES[kind]
    start = offset = _first_frame(data, kind) or 0
    repairs = ["bytes before its first frame"] * (start > 0)
    num_frames, is_cut, is_unsure = 0, False, False
    runs: list[tuple[int, int]] = []
    while True:
        while (size := frame_bytes(data, offset)) and offset + size <= len(data):
            offset += size
            num_frames += 1
        runs.append((start, offset))
        after_tags = _after_tags(data, offset)
        rest = data[after_tags:]
        following = _resync(data, offset, kind, _header(data, runs[0][0]), len(data))
        if size or _is_start_of_header(rest):
            is_cut = True
        elif following is not None and after_tags > offset:
            repairs += ["tags between its frames"]
            start = offset = following
            continue
        elif following is not None:
            is_cut = True
        elif rest.strip(b"\0"):
            repairs += ["bytes after its last frame"]
            is_unsure = not _is_text(rest) and b"APETAGEX" not in rest[-160:]
        break
    frames = data[runs[0][0] : offset] if len(runs) == 1 else b"".join(data[a:b] for a, b in runs)
    xing = _read_xing(frames) if kind == "mp3" else None
    if xing is None or xing[0] == 0:
        is_cut = is_cut or is_unsure  # the bytes at the end may be what is left of frames
        repairs += ["its header counts other frames"] * (xing is not None)
    else:
        num_declared, num_bytes = xing
        extra = num_declared - (num_frames - 1)  # it should not count its own frame
        if extra > 0:
            is_cut = is_cut or (num_bytes > len(frames) if num_bytes else extra > 1)
        repairs += ["its header counts other frames"] * (extra != 0)
    return Structure([frames], is_cut, tuple(dict.fromkeys(repairs)))


def mp3_frame_bytes(data: bytes, offset: int) -> int:
    """Length of the MP3 frame (layer III) at `offset`, 0 if there is none."""
    return _mp3_bytes(_header(data, offset) >> 8) if offset + 4 <= len(data) else 0


@lru_cache(maxsize=256)
def _mp3_bytes(header: int) -> int:
    """Length of a frame by the first 24 bits of its header, 0 if they are no header."""
    version, layer = header >> 11 & 3, header >> 9 & 3
    bit_rate, rate, padding = header >> 4 & 15, header >> 2 & 3, header >> 1 & 1
    if header >> 13 != 0x7FF or version == 1 or layer != 1 or rate == 3 or not 0 < bit_rate < 15:
        return 0
    kbps = _MP3_KBPS[1 if version == 3 else 2][bit_rate - 1]
    rate_hz = _MP3_RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    return (144 if version == 3 else 72) * kbps * 1000 // rate_hz + padding


def _adts_frame_bytes(data: bytes, offset: int) -> int:
    """Length of the ADTS frame at `offset`, 0 if there is none."""
    header = data[offset : offset + 7]
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
        return 0
    size = int.from_bytes(header[3:6]) >> 5 & 0x1FFF
    return size if size > 7 else 0


_FRAME_BYTES: dict[FrameKind, Callable[[bytes, int], int]] = {
    "mp3": mp3_frame_bytes,
    "adts": _adts_frame_bytes,
}


def _header(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4])


def _first_frame(data: bytes, kind: FrameKind) -> int | None:
    """Where the first frame starts: after tags, zeros, and perhaps some unknown bytes."""
    if _FRAME_BYTES[kind](data, 0):
        return 0
    after_zeros = len(data) - len(data[_after_tags(data, 0) :].lstrip(b"\0"))
    # From the start: tags may be shorter than they say.
    return _resync(data, 0, kind, None, after_zeros + _MAX_JUNK_BYTES)


def _resync(data: bytes, start: int, kind: FrameKind, header: int | None, end: int) -> int | None:
    """The next place before `end` where several frames follow each other, or lead to the end.

    Args:
        header: that of another frame of the stream; None: unknown, then a few frames are required.
    """
    frame_bytes, constant_bits = _FRAME_BYTES[kind], _CONSTANT_BITS[kind]
    place = data.find(b"\xff", start, end)
    while place >= 0:
        offset, num_frames = place, 0
        constant = (_header(data, place) if header is None else header) & constant_bits
        while (
            num_frames < _SURE_FRAMES
            and _header(data, offset) & constant_bits == constant
            and (size := frame_bytes(data, offset))
        ):
            offset += size
            num_frames += 1
        leads_to_end = header is not None and num_frames and _after_tags(data, offset) == len(data)
        if num_frames == _SURE_FRAMES or leads_to_end:
            return place
        place = data.find(b"\xff", place + 1, end)
    return None


def _is_text(data: bytes) -> bool:
    """Whether these bytes are words; padding inside frames is letters without spaces."""
    try:
        text = data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        return False
    words = "".join(text.split())
    return words != text and words.isprintable()


def _is_start_of_header(rest: bytes) -> bool:
    """Whether the last bytes of a file are the first of a frame's header."""
    return 0 < len(rest) < 4 and rest[0] == 0xFF and (len(rest) == 1 or rest[1] >= 0xE0)


def _after_tags(data: bytes, offset: int) -> int:
    """Where the tags at `offset` end; `offset` where there are none."""
    while size := (
        _id3_bytes(data, offset)
        or _ape_bytes(data, offset)
        or _lyrics_bytes(data, offset)
        or (128 if data.startswith(b"TAG", offset) and offset + 128 <= len(data) else 0)
    ):
        offset = min(offset + size, len(data))
    return offset


def _id3_bytes(data: bytes, offset: int) -> int:
    """Length of an ID3v2 tag, 0 if there is none."""
    header = data[offset : offset + 10]
    if len(header) < 10 or header[:3] != b"ID3":
        return 0
    size = 0
    for seven_bits in header[6:]:
        size = size << 7 | seven_bits & 0x7F
    return size + (20 if header[5] & 0x10 else 10)


def _ape_bytes(data: bytes, offset: int) -> int:
    """Length of an APE tag that starts with its header or is only a footer, 0 if there is none."""
    header = data[offset : offset + 32]
    if len(header) < 32 or header[:8] != b"APETAGEX":
        return 0
    is_header = header[23] & 0x20
    return 32 + int.from_bytes(header[12:16], "little") if is_header else 32


def _lyrics_bytes(data: bytes, offset: int) -> int:
    """Length of a Lyrics3 tag, 0 if there is none."""
    if not data.startswith(b"LYRICSBEGIN", offset):
        return 0
    ends = [data.find(mark, offset) for mark in (b"LYRICS200", b"LYRICSEND")]
    found = [end for end in ends if end >= 0]
    return min(found) + 9 - offset if found else 0


def _read_xing(frames: bytes) -> tuple[int, int] | None:
    """Numbers of frames and of bytes by the Xing header of an MP3; None if it has no such header.

    A header that does not count the bytes gives 0.
    """
    first = frames[: mp3_frame_bytes(frames, 0)]
    for magic in (b"Xing", b"Info"):
        offset = first.find(magic, 0, 64)
        if offset >= 0 and len(first) >= offset + 16 and first[offset + 7] & 1:
            num_bytes = int.from_bytes(first[offset + 12 : offset + 16])
            return (
                int.from_bytes(first[offset + 8 : offset + 12]),
                num_bytes if first[offset + 7] & 2 else 0,
            )
    return None
