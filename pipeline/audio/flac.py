"""Whole FLAC files by dr_flac, in little more than half of libsndfile's time.

dr_flac skips frames whose checksum is wrong. A file that yields fewer samples than its header
promises is left to libsndfile, which reports what is wrong.
"""

import miniaudio
import numpy as np

from pipeline.audio.ffmpeg import Block
from pipeline.audio.streaminfo import begins_with_streaminfo, read_streaminfo

_MAX_BITS = 24
"""Samples with more bits are not exact in float32."""


def read_flac(data: bytes, max_values: int) -> Block | None:
    """Sample rate in Hz and `[N, channels]` float32 samples, the same as libsndfile gives.

    None if the header is unusual, if there are more than `max_values` samples over all channels, or
    if the file yields fewer than its header says.
    """
    if not begins_with_streaminfo(data):
        return None
    rate_hz, channels, bits, num_frames = read_streaminfo(data)
    if bits > _MAX_BITS or not rate_hz or not 0 < num_frames * channels <= max_values:
        return None
    try:
        decoded = miniaudio.flac_read_f32(data)
    except miniaudio.DecodeError:
        return None
    if (decoded.sample_rate, decoded.nchannels) != (rate_hz, channels):
        return None
    samples = np.frombuffer(decoded.samples, np.float32)
    return (
        (rate_hz, samples.reshape(-1, channels)) if len(samples) == num_frames * channels else None
    )
