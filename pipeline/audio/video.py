"""ASF (WMA), AVI, FLV and MPEG transport streams: whether all their parts are there."""

import numpy as np

_TS_PACKET_BYTES = 188
_TS_SYNC = 0x47
_NO_PID = 0x1FFF
"""Of packets that only fill."""
_UNKNOWN_BYTES = 0xFFFFFFFF
_AVI_LISTS = (b"RIFF", b"LIST")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
"""Starts the part of an ASF header with the size of the file."""
_ASF_HEADER_BYTES = 2**16


def is_transport_stream(data: bytes) -> bool:
    """Whether the file starts with three packets of an MPEG transport stream."""
    starts = data[: 3 * _TS_PACKET_BYTES : _TS_PACKET_BYTES]
    return len(data) >= 3 * _TS_PACKET_BYTES and set(starts) == {_TS_SYNC}


def is_transport_stream_cut(data: bytes) -> bool:
    """Whether packets are incomplete or missing, by the counter of each stream."""
    if len(data) % _TS_PACKET_BYTES:
        return True
    packets = np.frombuffer(data, np.uint8).reshape(-1, _TS_PACKET_BYTES)
    if (packets[:, 0] != _TS_SYNC).any():
        return True
    streams = (packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]
    has_payload = packets[:, 3] & 0x10 > 0
    # A field tells where a recording was spliced, and the counter may jump.
    is_splice = (packets[:, 3] & 0x20 > 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 > 0)
    for stream in np.unique(streams[has_payload & (streams != _NO_PID)]):
        chosen = has_payload & (streams == stream)
        steps = np.diff(packets[chosen, 3] & 15) & 15
        if ((steps > 1) & ~is_splice[chosen][1:]).any():
            return True
    return False


def is_asf_cut(data: bytes) -> bool:
    """Whether the file is shorter than its header says; one written live says nothing."""
    properties = _asf_properties(data)
    return len(properties) < 92 or int.from_bytes(properties[40:48], "little") > len(data)


def is_live_asf(data: bytes) -> bool:
    """Whether the file is an ASF whose header was written before its length was known."""
    properties = _asf_properties(data)
    return len(properties) == 92 and bool(properties[88] & 1)


def _asf_properties(data: bytes) -> bytes:
    start = data.find(_ASF_PROPERTIES, 0, _ASF_HEADER_BYTES)
    return data[start : start + 92] if start >= 0 else b""


def is_flv_cut(data: bytes) -> bool:
    """Whether tags are incomplete: each is followed by its length."""
    offset = int.from_bytes(data[5:9]) + 4
    while offset < len(data):
        end = offset + 11 + int.from_bytes(data[offset + 1 : offset + 4])
        if int.from_bytes(data[end : end + 4]) not in (end - offset, 0) or end + 4 > len(data):
            return True
        offset = end + 4
    return offset > len(data)


def is_avi_cut(data: bytes) -> bool:
    """Whether parts are incomplete or unknown."""
    offset = 0
    while offset + 8 <= len(data):
        name = data[offset : offset + 4]
        size = int.from_bytes(data[offset + 4 : offset + 8], "little")
        if not (name.isalnum() or name == b"rec "):
            return True
        is_list = name in _AVI_LISTS
        if offset + 8 + size > len(data) and not (is_list and size == _UNKNOWN_BYTES):
            return True
        offset += 12 if is_list else 8 + size + (size & 1)
    return offset not in (len(data), len(data) + 1)
