"""Recordings read once more for a page: a narrow spectrogram, and a copy of short sounds.

In: recordings that were tagged. Steps: decode as a stream; average the fbank over the frames of
each column. Out: a PNG and an Opus copy as data URIs. Memory does not grow with the length. The
same audio gives the same bytes.

W columns, F mel bins.
"""

import base64
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.audio.recording import WHOLE_BYTES
from pipeline.audio.rejects import RejectError
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import Channel, DecodeSettings
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip
from pipeline.pages.player import RATE_HZ, to_opus
from pipeline.pages.spectrogram import columns_png
from pipeline.shards.fetch import fetch_ahead
from trainer.tagging.segments import open_audio

Samples = NDArray[np.float32]

MOST_ROWS = 64
"""Height of a strip in pixels; neighbouring mel bins are averaged."""
_BLOCK_SAMPLES = 2**18
"""Samples whose fbank is computed at once."""
_READS_AHEAD = 2
_LEAST_RANGE = 6.0
"""Smallest difference of log energy between the darkest and the brightest shade: noise of a silent
recording is not shown as if it were loud."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What is to be made of a recording."""

    clip: Clip
    duration_s: float
    """As tagged: up to the fault of a broken one."""
    num_columns: int
    """Most columns of its strip."""
    with_sound: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Strip:
    """What a page shows of a recording besides its tags."""

    image: str = ""
    """Data URI; empty if it cannot be drawn."""
    sound: str = ""
    """Data URI; empty if it was not wanted."""
    problem: str = ""
    """Why there is neither."""


def read_strips(wanted: list[Wanted], channel: Channel, settings: FbankSettings) -> Iterator[Strip]:
    """Read recordings again, in order.

    Raises:
        UserError: the storage as a whole refuses or does not answer.
    """
    clips = [one.clip for one in wanted]
    with (
        DecoderProcess() as decoder,
        closing(fetch_ahead(clips, _READS_AHEAD, WHOLE_BYTES)) as contents,
    ):
        for one, content in zip(wanted, contents, strict=True):
            try:
                yield _strip(_Audio(one.clip, content, channel, decoder), one, settings)
            except RejectError as error:
                yield Strip(problem=f"cannot be read again: {error.reason}")


class _Audio:
    """A recording that can be decoded more than once."""

    def __init__(
        self,
        clip: Clip,
        content: bytes | Exception,
        channel: Channel,
        decoder: DecoderProcess,
    ) -> None:
        self._clip, self._content = clip, content
        self._channel, self._decoder = channel, decoder

    def blocks(self, rate_hz: int) -> Generator[Samples, None, None]:
        """Its samples, up to the end or the first fault; the fault is known from the tags."""
        with (
            open_audio(self._clip, self._content) as source,
            closing(
                self._decoder.decode_stream(
                    source,
                    DecodeSettings(channel=self._channel),
                    sample_rate_hz=rate_hz,
                    start_s=self._clip.start_s,
                    end_s=self._clip.end_s,
                )
            ) as blocks,
        ):
            is_begun = False
            try:
                for block in blocks:
                    is_begun = True
                    yield block.samples
            except RejectError:
                if not is_begun:
                    raise

    def beginning(self, rate_hz: int, duration_s: float) -> Samples:
        """Its first samples; all, unless the file is longer now."""
        num_samples, parts = 0, []
        with closing(self.blocks(rate_hz)) as blocks:
            for samples in blocks:
                parts.append(samples)
                num_samples += len(samples)
                if num_samples >= duration_s * rate_hz:
                    break
        return np.concatenate(parts)[: round(duration_s * rate_hz)]


def _strip(audio: _Audio, wanted: Wanted, settings: FbankSettings) -> Strip:
    num_frames = settings.num_frames(settings.samples_in(wanted.duration_s))
    image = sound = b""
    if num_frames > 0:
        columns = _Columns(num_frames, min(num_frames, wanted.num_columns), settings)
        for samples in audio.blocks(settings.sample_rate_hz):
            columns.add(samples)
        image = columns.png()
    if wanted.with_sound:
        sound = to_opus(audio.beginning(RATE_HZ, wanted.duration_s))
    return Strip(image=_data_uri("image/png", image), sound=_data_uri("audio/webm", sound))


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}" if content else ""


class _Columns:
    """Mean log-mel energies of columns, from a stream of samples."""

    def __init__(self, num_frames: int, num_columns: int, settings: FbankSettings) -> None:
        self._num_frames, self._settings = num_frames, settings
        self._sums = np.zeros((num_columns, settings.num_mels))
        self._counts = np.zeros(num_columns)
        self._waiting: list[Samples] = []
        self._num_waiting = 0
        self._next_frame = 0

    def add(self, samples: Samples) -> None:
        if self._next_frame >= self._num_frames:
            return  # the file is longer now
        for start in range(0, len(samples), _BLOCK_SAMPLES):
            piece = samples[start : start + _BLOCK_SAMPLES]
            self._waiting.append(piece)
            self._num_waiting += len(piece)
            if self._num_waiting >= _BLOCK_SAMPLES:
                self._flush()

    def png(self) -> bytes:
        """The picture, low mel bins at the bottom, its shades those of this recording."""
        self._flush()
        known = self._counts > 0
        if not known.any():
            return b""
        means = self._sums[known] / self._counts[known, None]
        low, high = np.percentile(means, (5, 99.7))
        columns = np.full(self._sums.shape, low)
        columns[known] = means
        per_row = -(-columns.shape[1] // MOST_ROWS)
        rows = np.arange(0, columns.shape[1], per_row)
        heights = np.diff(np.append(rows, columns.shape[1]))
        columns = np.add.reduceat(columns, rows, axis=1) / heights
        return columns_png(
            columns.astype(np.float32), low=float(low), high=float(max(high, low + _LEAST_RANGE))
        )

    def _flush(self) -> None:
        samples = np.concatenate([*self._waiting, np.empty(0, np.float32)])
        num = self._settings.num_frames(len(samples))
        # What is decoded now may be longer by a frame than the tags say.
        num = min(num, self._num_frames - self._next_frame)
        if num > 0:
            self._take(samples[: self._settings.samples_for(num)], num)
            samples = samples[num * self._settings.frame_shift :].copy()
        self._waiting, self._num_waiting = [samples], len(samples)

    def _take(self, samples: Samples, num: int) -> None:
        frames = fbank(torch.from_numpy(samples), self._settings).numpy()
        numbers = np.arange(self._next_frame, self._next_frame + num)
        places = numbers * len(self._sums) // self._num_frames
        starts = np.flatnonzero(np.diff(places, prepend=-1))
        self._sums[places[starts]] += np.add.reduceat(frames, starts, axis=0, dtype=np.float64)
        self._counts[places[starts]] += np.diff(np.append(starts, num))
        self._next_frame += num
