"""Kind of an audio file, and whether the file is cut short.

In: the bytes, without an ID3 tag in front. The first bytes give the kind, never the file's name;
then the parts of the file are walked by the lengths that they declare. Nothing is decoded. Proof
that a file is whole:

    wav, aiff, caf, au, w64   the chunk with the samples ends within the file
    flac                      STREAMINFO's number of samples, checked by the decoder
    ogg                       pages follow each other up to one that ends the stream; checksums
    mp3                       whole frames up to the end or a tag; as many as the Xing header says
    adts                      whole frames up to the end or a tag
    mp4                       known boxes follow each other up to the end
    matroska (WebM)           known parts of the segment and its clusters up to its end

Two faults cannot be detected: a cut exactly between two parts of an MP3 without a Xing header, of
ADTS, of live WebM (a segment without a length), of fragmented MP4, or of a WAV, AU or FLAC whose
header gives no length; and changed bits where there are no checksums, that is, outside FLAC and
OGG.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

from pipeline.audio import ogg, streaminfo

Kind = Literal["wav", "aiff", "caf", "au", "w64", "flac", "ogg", "mp3", "adts", "mp4", "matroska"]

_MAGICS: tuple[tuple[int, bytes, Kind], ...] = (
    (8, b"WAVE", "wav"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (0, streaminfo.MAGIC, "flac"),
    (0, ogg.MAGIC, "ogg"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
)
_TAGS = (b"TAG", b"APETAGEX", b"LYRICSBEGIN")
"""Marks of tags that may follow the last frame of an MP3 or ADTS file."""

_UNKNOWN_BYTES = 0x7FFF0000
"""Programs that do not know the length yet write a 32-bit length of at least this."""

_MP4_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide junk sidx ssix meta meco uuid udta pdin prft "
    b"emsg pnot PICT".split()
)
_MATROSKA_PARENTS = frozenset({b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"})
"""Segment and cluster."""
_MATROSKA_IDS = _MATROSKA_PARENTS | frozenset(
    bytes.fromhex(digits)
    for digits in (
        *("1a45dfa3", "114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1043a770", "1254c367"),
        *("1941a469", "ec", "bf", "e7", "a3", "a0", "a7", "ab", "5854", "af"),
    )
)

_MP3_RATES_HZ = (44_100, 48_000, 32_000)
_MP3_KBPS = {
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


def without_id3(data: bytes) -> bytes:
    """The file without any ID3v2 tags at its start."""
    while data[:3] == b"ID3" and len(data) > 10:
        size = 0
        for seven_bits in data[6:10]:
            size = size << 7 | seven_bits & 0x7F
        data = data[20 + size if data[5] & 0x10 else 10 + size :]
    return data


def kind_of(data: bytes) -> Kind | None:
    """The kind of file; None if it is no known kind of audio file."""
    for offset, magic, kind in _MAGICS:
        if data.startswith(magic, offset):
            return kind
    if _mp3_frame_bytes(data, 0):
        return "mp3"
    return "adts" if _adts_frame_bytes(data, 0) else None


def is_cut(data: bytes, kind: Kind) -> bool:
    """Whether the file ends before its structure says, or that structure is damaged."""
    match kind:
        case "wav" | "aiff" | "caf":
            return _is_samples_chunk_cut(data, kind)
        case "au":
            start, size = _number(data, 4, 4, "big"), _number(data, 8, 4, "big")
            return size < _UNKNOWN_BYTES and start + size > len(data)
        case "w64":
            return _number(data, 16, 8, "little") > len(data)
        case "ogg":
            return not ogg.is_whole(data)
        case "mp3":
            num_frames, is_whole = _walk_frames(data, _mp3_frame_bytes)
            declared = xing_frames(data)
            # The Xing header does not count its own frame.
            return not is_whole or (declared is not None and num_frames - 1 != declared)
        case "adts":
            return not _walk_frames(data, _adts_frame_bytes)[1]
        case "mp4":
            return not _is_mp4_whole(data)
        case "matroska":
            return not _is_matroska_whole(data)
        case "flac":
            return False


def xing_frames(data: bytes) -> int | None:
    """The number of frames by the Xing header of an MP3 file; None without such a header."""
    first = data[: _mp3_frame_bytes(data, 0)]
    for magic in (b"Xing", b"Info"):
        offset = first.find(magic, 0, 64)
        if offset >= 0 and len(first) >= offset + 12 and first[offset + 7] & 1:
            return _number(first, offset + 8, 4, "big")
    return None


def _number(data: bytes, offset: int, size: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(data[offset : offset + size], order)


def _is_samples_chunk_cut(data: bytes, kind: Kind) -> bool:
    name = b"SSND" if kind == "aiff" else b"data"
    offset, size_bytes = (8, 8) if kind == "caf" else (12, 4)
    while (body := offset + 4 + size_bytes) <= len(data):
        size = _number(data, offset + 4, size_bytes, "little" if kind == "wav" else "big")
        if data[offset : offset + 4] == name:
            if data[:4] == b"RF64" and size == 0xFFFFFFFF:
                size = _number(data, 28, 8, "little")
            elif size >= (1 << 63 if kind == "caf" else _UNKNOWN_BYTES):
                return False
            return body + size > len(data)
        offset = body + size + (size & 1 if kind != "caf" else 0)
    return True


def _walk_frames(data: bytes, frame_bytes: Callable[[bytes, int], int]) -> tuple[int, bool]:
    """Number of consecutive frames, and whether only padding or a tag follows them."""
    offset = num_frames = 0
    while size := frame_bytes(data, offset):
        offset += size
        num_frames += 1
    is_end = offset <= len(data) and not data[offset:].strip(b"\0")
    return num_frames, is_end or data.startswith(_TAGS, offset)


def _mp3_frame_bytes(data: bytes, offset: int) -> int:
    """Length of the MP3 frame at `offset`, 0 if there is none."""
    return _mp3_bytes(_number(data, offset, 3, "big")) if offset + 4 <= len(data) else 0


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
    size = _number(header, 3, 3, "big") >> 5 & 0x1FFF
    return size if size > 7 else 0


def _is_mp4_whole(data: bytes) -> bool:
    offset = 0
    while offset + 8 <= len(data) and data[offset + 4 : offset + 8] in _MP4_BOXES:
        size = _number(data, offset, 4, "big")
        if size == 0:
            return True  # the last box extends to the end of the file
        if size == 1:
            size = _number(data, offset + 8, 8, "big")
        if size < 8:
            return False
        offset += size
    return offset == len(data)


def _is_matroska_whole(data: bytes) -> bool:
    """Walk over the parts of the segment and of its clusters."""
    offset = 0
    ends: list[int] = []
    while offset < len(data):
        id_bytes = 9 - data[offset].bit_length()
        size_offset = offset + id_bytes
        element_id = data[offset:size_offset]
        if size_offset >= len(data) or not data[size_offset] or element_id not in _MATROSKA_IDS:
            return False
        size_bytes = 9 - data[size_offset].bit_length()
        body = size_offset + size_bytes
        unknown = (1 << 7 * size_bytes) - 1  # written live
        size = _number(data, size_offset, size_bytes, "big") & unknown
        if size != unknown:
            ends.append(body + size)
        offset = body if size == unknown or element_id in _MATROSKA_PARENTS else body + size
        while ends and offset >= ends[-1]:
            if offset > ends.pop():
                return False
    return offset == len(data) and not ends
