"""OGG files as a sequence of pages (RFC 3533); decoders interpret their bodies.

A page starts with its mark. A header of 27 bytes and a table of lengths precede its body; they hold
the page's number in the stream, the stream's serial number and a checksum of the page.
"""

import zlib
from collections.abc import Iterator

MAGIC = b"OggS"
"""The mark at the start of every page."""

_FLAGS = 5
_FIRST_PAGE, _LAST_PAGE = 2, 4
_SERIAL = slice(14, 18)
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


def has_damaged_pages(data: bytes) -> bool:
    """Whether a page does not match its checksum: decoders drop such pages silently."""
    whole = (data[start:end] for start, end in pages(data) if end <= len(data))
    return any(checksum(page) != page[_CHECKSUM] for page in whole)


def is_whole(data: bytes) -> bool:
    """Whether pages follow each other up to the last page of the stream."""
    page_ranges = list(pages(data))
    lasts = [start for start, _ in page_ranges if data[start + _FLAGS] & _LAST_PAGE]
    firsts = [start for start, _ in page_ranges if data[start + _FLAGS] & _FIRST_PAGE]
    # Another recording may follow the last page; decoders ignore it.
    return bool(lasts and firsts) and firsts[-1] <= lasts[0] and page_ranges[-1][1] <= len(data)


def with_serial_zero(data: bytes) -> bytes:
    """The file with its stream's serial number, which writers draw at random, set to 0."""
    fixed = bytearray(data)
    for start, end in pages(data):
        page = bytearray(data[start:end])
        page[_SERIAL] = bytes(4)
        page[_CHECKSUM] = checksum(bytes(page))
        fixed[start:end] = page
    return bytes(fixed)
