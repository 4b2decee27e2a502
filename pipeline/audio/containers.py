"""Kind of an audio file, and whether the file is cut short.

In: the bytes, without an ID3 tag in front. The first bytes give the kind, never the file's name;
then the parts of the file are walked by the lengths that they declare. Nothing is decoded. Proof
that a file is whole:

    wav, aiff, caf, au, w64   the chunk with the samples ends within the file
    flac, sphere, wavpack,    the header's number of samples, checked by the decoder
    tta
    ogg                       pages follow each other up to one that ends the stream; checksums
    mp3, adts                 whole frames up to the end or a tag; as many as the Xing header says
    mp4                       known boxes follow each other up to the end
    matroska (WebM)           known parts of the segment and its clusters up to its end
    avi, flv                  known parts follow each other up to the end
    mpegts                    whole packets up to the end, whose counters leave none out
    asf (WMA)                 the size of the file in its header

Some odd files are whole nevertheless: those are repaired, which is said in the index, or rejected
where the settings are strict.

Two faults cannot be detected: a cut exactly between two parts of an MP3 without a Xing header, of
ADTS, AMR, FLV, MPEG transport streams, of live WebM (a segment without a length), of
fragmented MP4, or of a WAV, AU or FLAC whose header gives no length; and changed bits where there
are no checksums, that is, outside FLAC, OGG and WavPack.
"""

from typing import Literal

from pipeline.audio import flac, frames, ogg, streaminfo, video, wav
from pipeline.audio.structure import Structure

Kind = Literal[
    "wav", "aiff", "caf", "au", "w64", "flac", "ogg", "mp3", "adts", "mp4", "matroska",
    "sphere", "wavpack", "tta", "amr", "asf", "avi", "flv", "mpegts",
]  # fmt: skip

_MAGICS: tuple[tuple[int, bytes, Kind], ...] = (
    (8, b"WAVE", "wav"),
    (8, b"AIFF", "aiff"),
    (8, b"AIFC", "aiff"),
    (8, b"AVI ", "avi"),
    (0, streaminfo.MAGIC, "flac"),
    (0, ogg.MAGIC, "ogg"),
    (4, b"ftyp", "mp4"),
    (4, b"moov", "mp4"),
    (4, b"mdat", "mp4"),
    (4, b"wide", "mp4"),
    (4, b"skip", "mp4"),
    (4, b"free", "mp4"),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (0, b"caff", "caf"),
    (0, b".snd", "au"),
    (0, b"riff\x2e\x91\xcf\x11", "w64"),
    (0, b"NIST_1A\n", "sphere"),
    (0, b"wvpk", "wavpack"),
    (0, b"TTA1", "tta"),
    (0, b"#!AMR", "amr"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"FLV\x01", "flv"),
)

_UNKNOWN_AIFF_BYTES = 0x7F000000
"""SoX writes a little more where it does not know the length yet."""
_LEAST_CONTROL = 9
"""Text has no smaller byte."""
_MORE_BYTES = "bytes after its last known part"

_MP4_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip wide junk sidx ssix meta meco uuid udta pdin prft "
    b"emsg pnot PICT".split()
)
_SEGMENT = b"\x18\x53\x80\x67"
_MATROSKA_PARENTS = frozenset({_SEGMENT, b"\x1f\x43\xb6\x75"})
"""Segment and cluster."""
_MATROSKA_IDS = _MATROSKA_PARENTS | frozenset(
    bytes.fromhex(digits)
    for digits in (
        *("1a45dfa3", "114d9b74", "1549a966", "1654ae6b", "1c53bb6b", "1043a770", "1254c367"),
        *("1941a469", "ec", "bf", "e7", "a3", "a0", "a7", "ab", "5854", "af"),
    )
)


def kind_of(data: bytes) -> Kind | None:
    """The kind of file; None if it is no known kind of audio file."""
    for offset, magic, kind in _MAGICS:
        # Text may have the name of an MP4's part, but not the length before it.
        if data.startswith(magic, offset) and (kind != "mp4" or data[0] < _LEAST_CONTROL):
            return kind
    if video.is_transport_stream(data):
        return "mpegts"
    return frames.frame_kind(data)


def examine(data: bytes, kind: Kind) -> Structure:
    """Walk the parts of a file."""
    match kind:
        case "mp3" | "adts":
            return frames.examine(data, kind)
        case "wav":
            return wav.examine(data)
        case "flac":
            return flac.examine(data)
        case "ogg":
            return ogg.examine(data)
        case "mp4":
            return _examine_mp4(data)
        case "matroska":
            return _examine_matroska(data)
        case "aiff" | "caf":
            is_cut = _is_samples_chunk_cut(data, kind)
        case "au":
            start, size = _number(data, 4, 4, "big"), _number(data, 8, 4, "big")
            is_cut = size < wav.UNKNOWN_BYTES and start + size > len(data)
        case "w64":
            is_cut = _number(data, 16, 8, "little") > len(data)
        case "asf":
            is_cut = video.is_asf_cut(data)
        case "avi":
            is_cut = video.is_avi_cut(data)
        case "flv":
            is_cut = video.is_flv_cut(data)
        case "mpegts":
            is_cut = video.is_transport_stream_cut(data)
        case _:
            is_cut = False  # the decoder checks it
    return Structure([data], is_cut)


def _number(data: bytes, offset: int, size: int, order: Literal["little", "big"]) -> int:
    return int.from_bytes(data[offset : offset + size], order)


def _is_samples_chunk_cut(data: bytes, kind: Kind) -> bool:
    name = b"SSND" if kind == "aiff" else b"data"
    offset, size_bytes = (8, 8) if kind == "caf" else (12, 4)
    while (body := offset + 4 + size_bytes) <= len(data):
        size = _number(data, offset + 4, size_bytes, "big")
        if data[offset : offset + 4] == name:
            is_unknown = size >= (1 << 63 if kind == "caf" else _UNKNOWN_AIFF_BYTES)
            return not is_unknown and body + size > len(data)
        offset = body + size + (size & 1 if kind != "caf" else 0)
    return True


def _examine_mp4(data: bytes) -> Structure:
    offset = 0
    seen: set[bytes] = set()
    repairs = []
    while offset + 8 <= len(data):
        name = data[offset + 4 : offset + 8]
        size = _number(data, offset, 4, "big")
        if size == 1:
            size = _number(data, offset + 8, 8, "big")
        has_all = {b"moov", b"mdat"} <= seen and b"moof" not in seen
        if name not in _MP4_BOXES:
            # The index of the samples is there and so are they: what follows is no audio.
            if not has_all:
                return Structure([data], is_cut=True)
            repairs = [_MORE_BYTES]
            if not name.isalnum() or size < 8 or offset + size > len(data):
                return Structure([data], False, tuple(repairs))
        if name in _MP4_BOXES and size == 0:
            break  # the last box extends to the end of the file
        if size < 8:
            return Structure([data], is_cut=True)
        seen.add(name)
        offset += size
    else:
        if offset > len(data):
            return Structure([data], is_cut=True)
        if offset < len(data):
            repairs = [_MORE_BYTES]
    return Structure([data], False, tuple(repairs))


def _examine_matroska(data: bytes) -> Structure:
    """Walk over the parts of the segment and of its clusters."""
    offset = 0
    ends: list[int] = []
    has_ended = False
    while offset < len(data):
        id_bytes = 9 - data[offset].bit_length()
        size_offset = offset + id_bytes
        element_id = data[offset:size_offset]
        if size_offset >= len(data) or not data[size_offset] or element_id not in _MATROSKA_IDS:
            if has_ended and not ends:
                return Structure([data], False, (_MORE_BYTES,))
            return Structure([data], is_cut=True)
        size_bytes = 9 - data[size_offset].bit_length()
        body = size_offset + size_bytes
        unknown = (1 << 7 * size_bytes) - 1  # written live
        size = _number(data, size_offset, size_bytes, "big") & unknown
        if size != unknown:
            ends.append(body + size)
        offset = body if size == unknown or element_id in _MATROSKA_PARENTS else body + size
        has_ended = has_ended or (bool(ends) and element_id == _SEGMENT)
        while ends and offset >= ends[-1]:
            if offset > ends.pop():
                return Structure([data], is_cut=True)
    return Structure([data], is_cut=bool(ends) or offset != len(data))
