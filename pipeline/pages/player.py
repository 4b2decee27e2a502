"""The sound of a few clips, to be heard on a page: short Opus copies, embedded as data URIs.

In: a data set and a row of its index. Steps: read the stored audio, or the clip's source if it is
still there; resample; encode the first half minute. Out: a data URI. The same sound gives the same
bytes.
"""

import base64
import io
from functools import partial

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline import storage
from pipeline.audio.decode import decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings
from pipeline.audio.stored_audio import to_waveform
from pipeline.dataset.prepared import PreparedDataset

RATE_HZ = 24_000
BITS_PER_S = 32_000
MAX_S = 30.0
"""Seconds of a clip that are copied."""

_MAX_SOURCE_BYTES = 2**25
"""Larger sources are not fetched for a page."""
_SAME_LENGTH_S = 0.01
"""A source whose length differs by more is not the clip: a longer recording, or another file."""

Samples = NDArray[np.float32]


class Player:
    """Copies clips of one data set."""

    def __init__(self, dataset: PreparedDataset) -> None:
        self._dataset = dataset
        self._can_fetch = True

    def copy(self, row: int) -> str | None:
        """Data URI of a clip, given by its row of the index; None if its source is not at hand.

        Raises:
            OSError, EOFError, UserError: the shard of stored audio is missing or damaged.
        """
        if self._dataset.audio_fbank is not None:
            samples: Samples | None = to_waveform(self._dataset.read_samples(row))
            rate_hz = self._dataset.audio_fbank.sample_rate_hz
        else:
            samples, rate_hz = self._decode_source(row), RATE_HZ
        if samples is None:
            return None
        samples = samples[: round(MAX_S * rate_hz)]
        if rate_hz != RATE_HZ:
            samples = soxr.resample(samples, rate_hz, RATE_HZ)
        return "data:audio/webm;base64," + base64.b64encode(to_opus(samples)).decode()

    def _decode_source(self, row: int) -> Samples | None:
        clip = self._dataset.index.row(row)
        content = self._fetch(clip["uri"])
        if content is None:
            return None
        try:
            decoded = decode_audio(content, DecodeSettings(), sample_rate_hz=RATE_HZ)
        except RejectError:
            return None
        duration_s = len(decoded.samples) / RATE_HZ
        is_whole = abs(duration_s - clip["duration_s"]) < _SAME_LENGTH_S
        return decoded.samples if is_whole else None

    def _fetch(self, uri: str) -> bytes | None:
        if not self._can_fetch:
            return None
        try:
            read = partial(storage.read_file, max_bytes=_MAX_SOURCE_BYTES)
            return bytes(storage.with_retries(read, uri))
        except storage.TooLargeError:
            return None
        except Exception as error:
            # A storage that does not answer would be waited for with each clip.
            self._can_fetch = storage.one_file_fault(error) is not None
            return None


def to_opus(samples: Samples) -> bytes:
    """A WebM file with these samples `[N]` at `RATE_HZ`."""
    target = io.BytesIO()
    # Otherwise the file holds random numbers.
    options = {"fflags": "+bitexact"}
    with av.open(target, "w", format="webm", options=options) as container:
        stream = container.add_stream("libopus", rate=RATE_HZ, layout="mono")
        stream.bit_rate = BITS_PER_S
        stream.format = "flt"
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = RATE_HZ
        frames = av.AudioFifo()
        frames.write(frame)
        while (part := frames.read(stream.frame_size, partial=True)) is not None:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return target.getvalue()
