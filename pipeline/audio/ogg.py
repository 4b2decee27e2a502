"""OGG files as a sequence of pages (RFC 3533); decoders interpret their bodies.

A page starts with its mark. A header of 27 bytes and a table of lengths precede its body; they hold
the page's number in the stream, the stream's serial number and a checksum of the page.
"""

import zlib
from collections.abc import Iterator

from pipeline.audio.rejects import RejectError
from pipeline.audio.structure import SEVERAL, Structure

MAGIC = b"OggS"
"""The mark at the start of every page."""

_FLAGS = 5
_FIRST_PAGE, _LAST_PAGE = 2, 4
_SERIAL = slice(14, 18)
_NUMBER = slice(18, 22)
_CHECKSUM = slice(22, 26)
_NUM_SEGMENTS = 26
_HEADER_BYTES = 27
_MIRRORED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def pages(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each page up to other bytes than pages; the last may be cut off."""
    start = 0
    while data.startswith(MAGIC, start) and start + _HEADER_BYTES <= len(data):
        body = start + _HEADER_BYTES + data[start + _NUM_SEGMENTS]
        end = body + sum(data[start + _HEADER_BYTES : body])
        yield start, end
        start = end


def checksum(page: bytes) -> bytes:
    """CRC-32 of a page with its checksum blanked: zlib's, with the bits reversed."""
    blank = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
    mirrored = ~zlib.crc32(blank.translate(_MIRRORED_BYTES), 0xFFFFFFFF) & 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little")


def examine(data: bytes) -> Structure:
    """Walk the pages of a file."""
    # Decoders drop damaged pages silently.
    whole = (data[start:end] for start, end in pages(data) if end <= len(data))
    if any(checksum(page) != page[_CHECKSUM] for page in whole):
        raise RejectError("decode", "cut short or damaged")
    recordings = _split(data)
    return Structure(
        recordings,
        is_cut=not all(map(is_whole, recordings)),
        repairs=SEVERAL if len(recordings) > 1 else (),
    )


def is_whole(data: bytes) -> bool:
    """Whether the pages of a recording follow each other up to the last page of the stream."""
    num_pages: dict[bytes, int] = {}
    has_last, is_inside = False, True
    for start, end in pages(data):
        is_inside = end <= len(data)
        page = data[start : start + _HEADER_BYTES]
        number = int.from_bytes(page[_NUMBER], "little")
        if number != num_pages.setdefault(page[_SERIAL], number):
            return False  # a page is missing
        num_pages[page[_SERIAL]] += 1
        has_last = has_last or bool(page[_FLAGS] & _LAST_PAGE)
    return has_last and is_inside


def _split(data: bytes) -> list[bytes]:
    """The recordings in the file, one after the other: "chained streams", usually one.

    The first pages of all streams of a recording, such as sound and video, stand at its start.
    """
    starts: list[int] = []
    was_first = False
    for start, _ in pages(data):
        is_first = bool(data[start + _FLAGS] & _FIRST_PAGE)
        if is_first and not was_first:
            starts.append(start)
        was_first = is_first
    ends = [*starts[1:], len(data)]
    return [data[start:end] for start, end in zip(starts, ends, strict=True)] or [data]


def with_serial_zero(data: bytes) -> bytes:
    """The file with its stream's serial number, which writers draw at random, set to 0."""
    fixed = bytearray(data)
    for start, end in pages(data):
        page = bytearray(data[start:end])
        page[_SERIAL] = bytes(4)
        page[_CHECKSUM] = checksum(bytes(page))
        fixed[start:end] = page
    return bytes(fixed)
