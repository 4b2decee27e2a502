"""Fbanks as pictures: log-mel energy by time and mel bin, as PNG images embedded in the page.

Shapes: T frames, F mel bins.
"""

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.colors
from numpy.typing import NDArray
from PIL import Image

from pipeline.dataset.card import Card
from pipeline.shards.tar import Fbank

MAX_COLUMNS = 480
"""Width of a spectrogram image, in pixels; the frames of a longer clip are averaged."""

COLOURS: tuple[str, ...] = tuple(plotly.colors.sequential.Magma)
"""The colour scale of spectrograms, from low to high: perceptually even."""

_NUM_LEVELS = 64
"""Shades in an image: as many as the eye can tell apart, at half the bytes of 256."""


FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrogram:
    """A fbank as a page shows it."""

    image: str
    """Data URI of the picture, low mel bins at the bottom."""
    duration_s: float
    num_mels: int
    ticks: tuple[tuple[float, str], ...]
    """Of the time axis: position in percent of the width, and seconds."""


def draw(fbank: Fbank, card: Card) -> Spectrogram:
    """The picture of a clip's fbank `[T, F]`; all clips of a data set use the same scale."""
    low, high = energy_range(card)
    duration_s = len(fbank) * card.fbank.frame_shift_ms / 1000
    png = spectrogram_png(fbank.astype(np.float32), low=low, high=high)
    return Spectrogram(
        image="data:image/png;base64," + base64.b64encode(png).decode(),
        duration_s=duration_s,
        num_mels=fbank.shape[1],
        ticks=time_ticks(duration_s),
    )


def energy_range(card: Card) -> tuple[float, float]:
    """Log-mel energies of the darkest and the brightest shade, the same for all clips."""
    return card.mean - 2 * card.std, card.mean + 2.5 * card.std


def spectrogram_png(fbank: FloatArray, *, low: float, high: float) -> bytes:
    """Draw a fbank `[T, F]`, one pixel per mel bin and at most `MAX_COLUMNS` in time."""
    stretch = math.ceil(len(fbank) / MAX_COLUMNS)
    starts = np.arange(0, len(fbank), stretch)
    lengths = np.diff(np.append(starts, len(fbank)))
    columns = np.add.reduceat(fbank, starts, axis=0) / lengths[:, None]
    return columns_png(columns, low=low, high=high)


def columns_png(columns: NDArray[np.floating[Any]], *, low: float, high: float) -> bytes:
    """Draw log-mel energies `[T, F]`, one pixel each."""
    brightness = np.clip((columns - low) / max(high - low, 1e-6), 0, 1)
    levels = np.round(brightness * (_NUM_LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels.T[::-1]))
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def time_ticks(duration_s: float) -> tuple[tuple[float, str], ...]:
    """Round times along a clip, four to eight of them: position in percent, and seconds."""
    steps = [10.0**power * digit for power in range(-3, 5) for digit in (1, 2, 5)]
    step = next((step for step in steps if duration_s / step <= 6), steps[-1])
    ticks = [number * step for number in range(int(duration_s / step + 1e-9) + 1)]
    return tuple((100 * tick / duration_s, f"{tick:.6g}") for tick in ticks)


def _palette() -> list[int]:
    """Red, green and blue of each shade, interpolated between `COLOURS`."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    positions = np.linspace(0, len(anchors) - 1, _NUM_LEVELS)
    channels = [np.interp(positions, np.arange(len(anchors)), anchors[:, i]) for i in range(3)]
    return [round(float(value)) for shade in zip(*channels, strict=True) for value in shade]
