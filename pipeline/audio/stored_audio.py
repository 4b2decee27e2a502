"""Audio as stored by `prepare --store audio`: 16-bit mono FLAC at the rate of the fbank.

In: a waveform. Steps: round to 16 bits, clipping and counting samples beyond full scale; encode.
Out: the bytes of a FLAC file, and from them the samples again. A source with one channel, 16 bits
and that rate is kept exactly. For others rounding adds noise, which shows in the fbank where the
clip is quieter than the noise; index and card describe the fbanks of the stored audio.
"""

import io

import numpy as np
import numpy.typing as npt

from pipeline.audio.rejects import RejectError
from pipeline.audio.streaminfo import HEADER_BYTES, read_streaminfo

Samples16 = npt.NDArray[np.int16]

FULL_SCALE = 32_768
"""The stored number for 1.0."""
MAX_CLIPPED_SHARE = 0.1
"""A clip with a larger share of samples beyond full scale is rejected: clipping distorts it."""


def to_16_bits(waveform: npt.NDArray[np.float32]) -> tuple[Samples16, int]:
    """Stored samples `[N]` of a waveform, and how many were beyond [-1, 1] and are clipped.

    Raises:
        RejectError: too many samples are clipped.
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
    """The bytes of a FLAC file with these samples."""
    import soundfile  # a codec: loaded only where audio is stored

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode_flac(data: bytes, num_samples: int) -> Samples16:
    """The stored samples `[num_samples]` of a FLAC file; other threads can run meanwhile.

    Raises:
        EOFError: it does not hold exactly `num_samples`, or cannot be decoded.
    """
    import miniaudio  # a codec: loaded only where audio is stored

    # Checked first, as the decoder allocates as much memory as the header declares.
    if len(data) < HEADER_BYTES or read_streaminfo(data).num_frames != num_samples:
        raise EOFError(f"is no FLAC of {num_samples} samples")
    try:
        decoded = miniaudio.flac_read_s16(data)
    except miniaudio.DecodeError as error:
        raise EOFError("cannot be decoded") from error
    if decoded.nchannels != 1 or len(decoded.samples) != num_samples:
        raise EOFError(f"does not give {num_samples} samples of one channel")
    return np.frombuffer(decoded.samples, np.int16)
