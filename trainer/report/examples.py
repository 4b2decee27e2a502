"""Predictions of an evaluation to what is shown of single clips: examples and confusions.

In: `predictions/<name>.parquet` of a run and the data set it was made from. Steps: read the scores;
choose the clips that are most surely right and most surely wrong, spread over the classes; draw
their fbanks as PNG images. Out: `Example`s and a confusion matrix. The same predictions always give
the same choice.

Shapes: N clips, C classes, T frames, F mel bins.
"""

import base64
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.colors
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.dataset import PreparedDataset
from pipeline.errors import UserError

NUM_RIGHT = 4
NUM_WRONG = 6
NUM_TOP = 5
"""Predicted tags shown with a clip."""

NUM_EXTRA = 3
"""True labels shown with a clip that are not among the top tags, at most."""

MAX_COLUMNS = 480
"""Width of a spectrogram image, in pixels; the frames of a longer clip are averaged."""

COLOURS: tuple[str, ...] = tuple(plotly.colors.sequential.Magma)
"""The colour scale of spectrograms, from low to high: perceptually even."""

_NUM_LEVELS = 64
"""Shades in an image: as many as can be told apart, at half the bytes of 256."""

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredClips:
    """Labels and scores of N evaluated clips."""

    ids: list[str]
    labels: list[list[str]]
    scores: FloatArray
    """`[N, C]`."""
    vocabulary: list[str]
    """C labels."""

    @property
    def targets(self) -> BoolArray:
        """`[N, C]`: the labels of each clip; those outside the vocabulary have no class."""
        classes = {label: number for number, label in enumerate(self.vocabulary)}
        targets = np.zeros(self.scores.shape, dtype=bool)
        for row, labels in enumerate(self.labels):
            targets[row, [classes[label] for label in labels if label in classes]] = True
        return targets


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """A class's score for a clip."""

    label: str
    score: float
    rank: int
    """1 for the highest score."""
    is_true: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A clip as it is shown."""

    clip_id: str
    is_right: bool
    """Whether the highest score is that of a true label."""
    labels: tuple[str, ...]
    tags: tuple[Tag, ...]
    image: str
    """Data URI of the spectrogram, low mel bins at the bottom."""
    duration_s: float
    num_mels: int
    ticks: tuple[tuple[float, str], ...]
    """Of the time axis: place in percent of the width, and seconds."""


def read_scored_clips(path: str) -> ScoredClips:
    """Read predictions.

    Raises:
        FileNotFoundError: there are none.
        UserError: the file is not one of predictions.
    """
    table = storage.read_table(path)
    metadata = (table.schema.metadata or {}).get(b"ast_ray")
    if metadata is None or not {"id", "labels", "scores"} <= set(table.column_names):
        raise UserError(f"{path}: not a file of predictions; evaluate the run again")
    vocabulary = json.loads(metadata)["labels"]
    values = pc.list_flatten(table["scores"]).to_numpy().astype(np.float32, copy=False)
    if len(values) != table.num_rows * len(vocabulary):
        raise UserError(f"{path}: not one score for each clip and label; evaluate the run again")
    return ScoredClips(
        ids=table["id"].to_pylist(),
        labels=table["labels"].to_pylist(),
        scores=values.reshape(table.num_rows, len(vocabulary)),
        vocabulary=vocabulary,
    )


def confusion_counts(clips: ScoredClips) -> NDArray[np.int64] | None:
    """Clips by `[true, predicted]` class `[C, C]`; None if a clip has not exactly one label."""
    targets = clips.targets
    if not clips.ids or not (targets.sum(axis=1) == 1).all():
        return None
    num_classes = len(clips.vocabulary)
    cells = targets.argmax(axis=1) * num_classes + clips.scores.argmax(axis=1)
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def choose_rows(clips: ScoredClips, *, num_right: int, num_wrong: int) -> list[int]:
    """Rows of the most surely wrong clips, then of the most surely right ones.

    Sureness is the distance between the best score of a true label and the best of another. One
    clip per predicted class comes first, then the others; clips that tie are taken by their id. A
    clip without a label, or with all of them, is not chosen. Fewer of one kind make room for more
    of the other.
    """
    targets = clips.targets
    if clips.scores.size == 0:
        return []
    best_true = np.where(targets, clips.scores, -np.inf).max(axis=1)
    best_other = np.where(targets, -np.inf, clips.scores).max(axis=1)
    margins = best_true - best_other
    usable = np.flatnonzero(np.isfinite(margins))
    order = sorted(usable, key=lambda row: (float(margins[row]), clips.ids[row]))
    predicted = clips.scores.argmax(axis=1)
    # A tie between a true label and another is settled as accuracy does: by the first class.
    is_right = targets[np.arange(len(predicted)), predicted]
    wrong = _spread([row for row in order if not is_right[row]], predicted)
    right = _spread([row for row in reversed(order) if is_right[row]], predicted)
    total = num_right + num_wrong
    num_wrong = min(len(wrong), max(num_wrong, total - len(right)))
    return wrong[:num_wrong] + right[: total - num_wrong]


def make_examples(clips: ScoredClips, dataset: PreparedDataset) -> list[Example]:
    """The chosen clips with their spectrograms; one that the data set does not have is left out.

    Raises:
        OSError, EOFError: the data set's shards are not there, or not whole.
    """
    rows = choose_rows(clips, num_right=NUM_RIGHT, num_wrong=NUM_WRONG)
    places = pc.index_in(
        pa.array([clips.ids[row] for row in rows], pa.string()),
        value_set=dataset.index["id"].combine_chunks(),
    ).to_pylist()
    low, high = energy_range(dataset.card)
    shift_s = dataset.card["fbank"]["frame_shift_ms"] / 1000
    examples = []
    for row, place in zip(rows, places, strict=True):
        if place is not None:
            fbank = dataset.read_fbank(place).astype(np.float32)
            image = spectrogram_png(fbank, low=low, high=high)
            examples.append(_example(clips, row, fbank.shape, image, shift_s))
    return examples


def energy_range(card: dict[str, float]) -> tuple[float, float]:
    """Log-mel energies of the darkest and the brightest shade, the same for all clips."""
    return card["mean"] - 2 * card["std"], card["mean"] + 2.5 * card["std"]


def spectrogram_png(fbank: FloatArray, *, low: float, high: float) -> bytes:
    """Draw a fbank `[T, F]`, one pixel per mel bin and at most `MAX_COLUMNS` in time."""
    stretch = math.ceil(len(fbank) / MAX_COLUMNS)
    starts = np.arange(0, len(fbank), stretch)
    lengths = np.diff(np.append(starts, len(fbank)))
    columns = np.add.reduceat(fbank, starts, axis=0) / lengths[:, None]
    shares = np.clip((columns - low) / max(high - low, 1e-6), 0, 1)
    levels = np.round(shares * (_NUM_LEVELS - 1)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(levels.T[::-1]))
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def time_ticks(duration_s: float) -> tuple[tuple[float, str], ...]:
    """Round times along a clip, four to eight of them: place in percent, and seconds."""
    steps = [10.0**power * digit for power in range(-3, 5) for digit in (1, 2, 5)]
    step = next((step for step in steps if duration_s / step <= 6), steps[-1])
    ticks = [number * step for number in range(int(duration_s / step + 1e-9) + 1)]
    return tuple((100 * tick / duration_s, f"{tick:.6g}") for tick in ticks)


def _example(
    clips: ScoredClips, row: int, shape: tuple[int, ...], image: bytes, shift_s: float
) -> Example:
    duration_s = shape[0] * shift_s
    tags = _tags(clips, row)
    return Example(
        clip_id=clips.ids[row],
        is_right=tags[0].is_true,
        labels=tuple(clips.labels[row]),
        tags=tags,
        image="data:image/png;base64," + base64.b64encode(image).decode(),
        duration_s=duration_s,
        num_mels=shape[1],
        ticks=time_ticks(duration_s),
    )


def _tags(clips: ScoredClips, row: int) -> tuple[Tag, ...]:
    """The top tags, then true labels that are not among them."""
    scores = clips.scores[row]
    true = set(clips.labels[row])
    ranked = [
        Tag(
            label=clips.vocabulary[number],
            score=float(scores[number]),
            rank=rank,
            is_true=clips.vocabulary[number] in true,
        )
        for rank, number in enumerate(np.argsort(-scores, kind="stable"), start=1)
    ]
    missed = [tag for tag in ranked[NUM_TOP:] if tag.is_true]
    return tuple(ranked[:NUM_TOP] + missed[:NUM_EXTRA])


def _spread(rows: Sequence[int], predicted: NDArray[np.int64]) -> list[int]:
    """The same rows, the first of each predicted class before all others."""
    seen: set[int] = set()
    first, others = [], []
    for row in rows:
        (others if predicted[row] in seen else first).append(row)
        seen.add(predicted[row])
    return first + others


def _palette() -> list[int]:
    """Red, green and blue of each shade, interpolated between `COLOURS`."""
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    places = np.linspace(0, len(anchors) - 1, _NUM_LEVELS)
    channels = [np.interp(places, np.arange(len(anchors)), anchors[:, i]) for i in range(3)]
    return [round(float(value)) for shade in zip(*channels, strict=True) for value in shade]
