"""Audio as `prepare --store audio` keeps it: mono FLAC of 16 bits, at the rate of the fbank.

In: a waveform. Steps: round to 16 bits, which cuts off what is beyond full scale (that is counted),
and encode. Out: the bytes of a FLAC file, and back again its samples. A source of one channel, 16
bits and that rate comes back as it was. Of any other, rounding adds noise, which shows in the fbank
where a clip is fainter than it; index and card tell of the fbanks of what is stored.
"""

import io

import numpy as np
import numpy.typing as npt

from pipeline.audio.rejects import RejectError
from pipeline.audio.streaminfo import HEADER_BYTES, read_streaminfo

Samples16 = npt.NDArray[np.int16]

FULL_SCALE = 32_768
"""The stored number that stands for 1.0."""
MAX_CLIPPED_SHARE = 0.1
"""A clip with a larger share of samples beyond full scale is rejected: it is not what it was."""


def to_16_bits(waveform: npt.NDArray[np.float32]) -> tuple[Samples16, int]:
    """Stored samples `[N]` of a waveform, and how many of them were beyond [-1, 1] and are cut off.

    Raises:
        RejectError: these are too many.
    """
    num_clipped = int(np.count_nonzero(np.abs(waveform) > 1))
    if num_clipped > MAX_CLIPPED_SHARE * len(waveform):
        share = f"{100 * MAX_CLIPPED_SHARE:g} %"
        raise RejectError("decode", f"more than {share} of its samples are beyond full scale")
    rounded = np.rint(np.clip(waveform, -1, 1) * FULL_SCALE)
    return np.minimum(rounded, FULL_SCALE - 1).astype(np.int16), num_clipped


def to_waveform(samples: Samples16) -> npt.NDArray[np.float32]:
    """Stored samples `[N]` as float32 in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(FULL_SCALE)


def encode_flac(samples: Samples16, rate_hz: int) -> bytes:
    """A FLAC file of stored samples."""
    import soundfile  # a codec: loaded only where audio is stored

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes, num_samples: int) -> Samples16:
    """The stored samples `[num_samples]` of a FLAC file; other threads run meanwhile.

    Raises:
        EOFError: it does not hold just so many.
    """
    import miniaudio  # a codec: loaded only where audio is stored

    # Looked at before, as the decoder asks for all the memory that the header speaks of.
    if len(data) < HEADER_BYTES or read_streaminfo(data).num_frames != num_samples:
        raise EOFError(f"is no FLAC of {num_samples} samples")
    try:
        decoded = miniaudio.flac_read_s16(data)
    except miniaudio.DecodeError as error:
        raise EOFError("cannot be decoded") from error
    if decoded.nchannels != 1 or len(decoded.samples) != num_samples:
        raise EOFError(f"does not give {num_samples} samples of one channel")
    return np.frombuffer(decoded.samples, np.int16)
