"""The STREAMINFO block of FLAC files written by libsndfile."""

import io

import numpy as np
import pytest
import soundfile

from pipeline.audio.streaminfo import (
    HEADER_BYTES,
    StreamInfo,
    begins_with_streaminfo,
    read_streaminfo,
)


@pytest.mark.parametrize(
    ("rate_hz", "channels", "subtype", "bits"),
    [(8000, 1, "PCM_S8", 8), (44_100, 2, "PCM_16", 16), (192_000, 8, "PCM_24", 24)],
)
def test_streaminfo_matches_the_written_file(
    rate_hz: int, channels: int, subtype: str, bits: int
) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((1234, channels)), rate_hz, format="FLAC", subtype=subtype)
    data = buffer.getvalue()
    assert begins_with_streaminfo(data)
    expected = StreamInfo(rate_hz=rate_hz, channels=channels, bits=bits, num_frames=1234)
    assert read_streaminfo(data[:HEADER_BYTES]) == expected
    # Another kind of block, truncated, with a prefix, or empty.
    others = [data[:4] + b"\x04" + data[5:], data[: HEADER_BYTES - 1], b"ID3" + data, b""]
    assert not any(begins_with_streaminfo(other) for other in others)
