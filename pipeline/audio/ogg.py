"""OGG files as a row of pages (RFC 3533); what the pages carry is left to decoders.

A page begins with its mark; 27 bytes and a table of lengths come before its body. In them are its
place in the stream, the stream's serial number and a checksum of the page.
"""

import zlib
from collections.abc import Iterator

MAGIC = b"OggS"
"""What every page begins with."""

_FLAGS = 5
_FIRST_PAGE, _LAST_PAGE = 2, 4
_SERIAL = slice(14, 18)
_CHECKSUM = slice(22, 26)
_NUM_SEGMENTS = 26
_HEADER_BYTES = 27
_MIRRORED_BYTES = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def pages(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each page begins and ends, up to the first that is none; the last may be cut off."""
    at = 0
    while data.startswith(MAGIC, at) and at + _HEADER_BYTES <= len(data):
        body = at + _HEADER_BYTES + data[at + _NUM_SEGMENTS]
        end = body + sum(data[at + _HEADER_BYTES : body])
        yield at, end
        at = end


def checksum(page: bytes) -> bytes:
    """CRC-32 of a page with its own checksum blank: zlib's, with the bits in the other order."""
    blank = page[: _CHECKSUM.start] + bytes(4) + page[_CHECKSUM.stop :]
    mirrored = ~zlib.crc32(blank.translate(_MIRRORED_BYTES), 0xFFFFFFFF) & 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2).to_bytes(4, "little")


def has_damaged_pages(data: bytes) -> bool:
    """Whether a page does not fit its checksum: decoders leave such pages out without a word."""
    whole = (data[at:end] for at, end in pages(data) if end <= len(data))
    return any(checksum(page) != page[_CHECKSUM] for page in whole)


def is_whole(data: bytes) -> bool:
    """Whether pages follow each other up to one that ends the stream."""
    found = list(pages(data))
    lasts = [at for at, _ in found if data[at + _FLAGS] & _LAST_PAGE]
    firsts = [at for at, _ in found if data[at + _FLAGS] & _FIRST_PAGE]
    # After the last page another recording may follow, which decoders leave out.
    return bool(lasts and firsts) and firsts[-1] <= lasts[0] and found[-1][1] <= len(data)


def with_serial_zero(data: bytes) -> bytes:
    """The file with 0 for the serial number of its stream, which writers draw at random."""
    fixed = bytearray(data)
    for at, end in pages(data):
        page = bytearray(data[at:end])
        page[_SERIAL] = bytes(4)
        page[_CHECKSUM] = checksum(bytes(page))
        fixed[at:end] = page
    return bytes(fixed)
