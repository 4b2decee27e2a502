"""The report's confusion matrix and example clips.

In: predictions and the data set they were made on. Steps: count true against predicted classes;
choose the most confident right and wrong clips, spread over the classes; draw their fbanks as PNG
images. Out: `Example`s and a confusion matrix. The choice depends only on the predictions.

Shapes: N clips, C classes, T frames, F mel bins.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from pipeline.pages.player import Player
from pipeline.pages.plots import Plot, short_label
from pipeline.pages.spectrogram import COLOURS, Spectrogram, draw, energy_range
from trainer.scores.predictions import Predictions

NUM_RIGHT = 5
NUM_WRONG = 7
NUM_TOP = 5
"""Predicted tags shown with a clip."""

NUM_EXTRA = 3
"""Most true labels shown with a clip in addition to the top tags."""

NUM_CONFUSIONS = 12
"""Rows in the table of the most frequent confusions."""

_SHADES = [
    # Shades of one colour over the page's background, which shows zero; steep at first, so that
    # rare confusions are visible.
    [0, "rgba(63,116,209,0)"],
    [0.01, "rgba(63,116,209,0.16)"],
    [0.25, "rgba(63,116,209,0.42)"],
    [1, "rgba(63,116,209,0.85)"],
]

MAX_NAMED_CLASSES = 60
"""Classes whose names fit beside a confusion matrix."""

Counts = NDArray[np.int64]
Section = dict[str, Any]
"""Data of one section, for the page's template."""


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
    """A clip as the page shows it."""

    clip_id: str
    is_right: bool
    """Whether the highest score is that of a true label."""
    labels: tuple[str, ...]
    tags: tuple[Tag, ...]
    spectrogram: Spectrogram
    sound: str | None
    """Data URI of a short copy; None if the clip's source is not at hand."""


def confusion_section(names: Sequence[str], scored: Iterable[Predictions | None]) -> Section:
    """The confusion matrix, summed over the runs that have the same classes.

    Args:
        names: of the runs.
        scored: predictions of each run, or None.

    Returns:
        `plot`, `pairs` (the most frequent confusions), `left_out` (classes), `names` (summed runs);
        without a plot, the `reason`.
    """
    total: Counts | None = None
    vocabulary: list[str] = []
    added = []
    for name, clips in zip(names, scored, strict=True):
        if clips is None or (vocabulary and clips.labels != vocabulary):
            continue
        counts = confusion_counts(clips)
        if counts is None:
            return _no_confusions(
                "Some clips have no label or several, so there is no single true class to compare "
                "with the predicted one: a confusion matrix needs exactly one label per clip."
            )
        total, vocabulary = counts if total is None else total + counts, clips.labels
        added.append(name)
    if total is None:
        return _no_confusions("There are no predictions.")
    # Classes that are neither true nor predicted would be empty rows and columns.
    used = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    labels = [vocabulary[number] for number in used]
    counts = total[np.ix_(used, used)]
    return {
        "plot": confusion_plot(counts, labels),
        "reason": "",
        "pairs": _frequent_confusions(counts, labels),
        "left_out": [label for label in vocabulary if label not in set(labels)],
        "names": added,
    }


def example_section(
    name: str, clips: Predictions | None, dataset: PreparedDataset | None, problem: str
) -> Section:
    """Example clips of one run.

    Args:
        name: of the run.
        clips: its predictions, or None.
        dataset: that it was evaluated on; None if it cannot be read.
        problem: why predictions or data set are missing.

    Returns:
        `run`, `examples`, `colours` and `range` of the spectrograms; without examples, the
        `reason`.
    """
    section: Section = {"run": name, "examples": [], "colours": COLOURS, "range": None}
    if clips is None or dataset is None:
        return section | {"reason": problem}
    try:
        shown = make_examples(clips, dataset)
    except (OSError, EOFError, UserError) as error:
        return section | {"reason": f"The data set's shards cannot be read: {error}"}
    reason = "" if shown else "The data set holds none of the clips that were evaluated."
    if not clips.targets.any():
        reason = "No evaluated clip has a label, so none can be right or wrong."
    scale = energy_range(dataset.card)
    return section | {"examples": shown, "reason": reason, "range": scale}


def confusion_counts(clips: Predictions) -> Counts | None:
    """Clips by `[true, predicted]` class `[C, C]`; None if a clip has not exactly one label."""
    if not clips.ids or not (clips.targets.sum(axis=1) == 1).all():
        return None
    num_classes = len(clips.labels)
    cells = clips.targets.argmax(axis=1) * num_classes + clips.scores.argmax(axis=1)
    counts = np.bincount(cells, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


def confusion_plot(counts: Counts, labels: Sequence[str]) -> Plot:
    """A confusion matrix: `counts[true, predicted]` `[C, C]`, shown as shares of each row."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = _unique_names(labels)
    num_classes = len(labels)
    cells: dict[str, Any] = {
        "type": "heatmap",
        "z": np.round(counts / totals, 3).tolist(),
        "x": names,
        "y": names,
        "customdata": counts.tolist(),
        "zmin": 0,
        "zmax": 1,
        "colorscale": _SHADES,
        "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "len": 0.6},
        "hovertemplate": "true <b>%{y}</b><br>predicted <b>%{x}</b><br>"
        "%{customdata} clips, %{z:.1%} of the true class<extra></extra>",
    }
    if num_classes <= 16:
        cells |= {"text": np.where(counts, counts, "").tolist(), "texttemplate": "%{text}"}
    are_named = num_classes <= MAX_NAMED_CLASSES
    ticks = {"tickvals": names, "ticktext": [short_label(label) for label in labels]}
    axis = {"type": "category", "ticks": "", "showgrid": False, "automargin": True}
    axis |= ticks if are_named else {"showticklabels": False}
    height_px = 180 + max(14, min(34, 480 // num_classes)) * num_classes if are_named else 640
    titles = [{"title": {"text": text, "standoff": 12}} for text in ("predicted", "true")]
    return Plot(
        key="confusions",
        title="Confusion matrix",
        caption="Rows are true classes, columns what was predicted; a shade is the share of the "
        "row. Drag the mouse to enlarge a part, double-click to return."
        + ("" if are_named else " Hover for the names of the classes."),
        summary=f"Confusion matrix of {num_classes} classes; the most frequent confusions are "
        "in the table that follows.",
        figure={
            "data": [cells],
            "layout": {
                "height": height_px,
                "xaxis": axis | titles[0] | {"tickangle": -45},
                "yaxis": axis | titles[1] | {"autorange": "reversed"},
                "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            },
        },
        height_px=height_px,
        min_width_px=height_px,
    )


def choose_rows(clips: Predictions, *, num_right: int, num_wrong: int) -> list[int]:
    """Rows of the most confident wrong clips, then of the most confident right ones.

    Confidence is the margin between the best scores of a true label and of any other. One clip per
    predicted class comes first, then the others; ties are ordered by id. Clips without labels, or
    with all of them, are not chosen. If there are too few of one kind, the other gets more.
    """
    targets = clips.targets > 0
    if clips.scores.size == 0:
        return []
    best_true = np.where(targets, clips.scores, -np.inf).max(axis=1)
    best_other = np.where(targets, -np.inf, clips.scores).max(axis=1)
    margins = best_true - best_other
    usable = [int(row) for row in np.flatnonzero(np.isfinite(margins))]
    order = sorted(usable, key=lambda row: (float(margins[row]), clips.ids[row]))
    predicted = clips.scores.argmax(axis=1)
    # Of tied classes the first counts as predicted, as in `top1_accuracy`.
    is_right = targets[np.arange(len(predicted)), predicted]
    wrong = _spread([row for row in order if not is_right[row]], predicted)
    right = _spread([row for row in reversed(order) if is_right[row]], predicted)
    total = num_right + num_wrong
    num_wrong = min(len(wrong), max(num_wrong, total - len(right)))
    return wrong[:num_wrong] + right[: total - num_wrong]


def make_examples(clips: Predictions, dataset: PreparedDataset) -> list[Example]:
    """The chosen clips with their spectrograms, without those that the data set lacks.

    Raises:
        OSError, EOFError, UserError: the data set's shards are missing, truncated or damaged.
    """
    rows = choose_rows(clips, num_right=NUM_RIGHT, num_wrong=NUM_WRONG)
    indices = _find([clips.ids[row] for row in rows], dataset)
    player = Player(dataset)
    return [
        _example(clips, row, draw(dataset.read_fbank(index), dataset.card), player.copy(index))
        for row, index in zip(rows, indices, strict=True)
        if index is not None
    ]


def _find(ids: list[str], dataset: PreparedDataset) -> list[int | None]:
    """The row of the index of each clip; None: the data set lacks it."""
    wanted = pa.array(ids, pa.string())
    found: dict[str, int] = {}
    start = 0
    for piece in dataset.index.pieces(["id"]):
        rows = np.flatnonzero(pc.is_in(piece["id"], value_set=wanted).to_numpy())
        found |= zip(piece["id"].take(rows).to_pylist(), (start + rows).tolist(), strict=True)
        start += piece.num_rows
    return [found.get(clip_id) for clip_id in ids]


def _example(clips: Predictions, row: int, spectrogram: Spectrogram, sound: str | None) -> Example:
    tags = _tags(clips, row)
    return Example(
        clip_id=clips.ids[row],
        is_right=tags[0].is_true,
        labels=tuple(clips.labels[number] for number in np.flatnonzero(clips.targets[row])),
        tags=tags,
        spectrogram=spectrogram,
        sound=sound,
    )


def _tags(clips: Predictions, row: int) -> tuple[Tag, ...]:
    """The top tags, then true labels not among them."""
    scores = clips.scores[row]
    true = set(np.flatnonzero(clips.targets[row]))
    ranked = [
        Tag(
            label=clips.labels[number],
            score=float(scores[number]),
            rank=rank,
            is_true=number in true,
        )
        for rank, number in enumerate(np.argsort(-scores, kind="stable"), start=1)
    ]
    missed = [tag for tag in ranked[NUM_TOP:] if tag.is_true]
    return tuple(ranked[:NUM_TOP] + missed[:NUM_EXTRA])


def _spread(rows: Sequence[int], predicted: NDArray[np.int64]) -> list[int]:
    """The rows reordered: the first of each predicted class before all others."""
    seen: set[int] = set()
    first: list[int] = []
    others: list[int] = []
    for row in rows:
        (others if predicted[row] in seen else first).append(row)
        seen.add(int(predicted[row]))
    return first + others


def _no_confusions(reason: str) -> Section:
    return {"plot": None, "reason": reason, "pairs": [], "left_out": [], "names": []}


def _frequent_confusions(counts: Counts, labels: Sequence[str]) -> list[Section]:
    """The largest cells off the diagonal, by count, then by share of the true class."""
    totals = counts.sum(axis=1)
    cells = [
        {
            "true": labels[true],
            "predicted": labels[predicted],
            "num": int(counts[true, predicted]),
            "share": float(counts[true, predicted] / totals[true]),
        }
        for true, predicted in np.argwhere(counts)
        if true != predicted
    ]
    cells.sort(key=lambda cell: (-cell["num"], -cell["share"], cell["true"], cell["predicted"]))
    return cells[:NUM_CONFUSIONS]


def _unique_names(labels: Sequence[str]) -> list[str]:
    """Labels as category names, which plotly.js needs to be unique."""
    names: dict[str, None] = {}
    for number, label in enumerate(labels):
        name = short_label(label, 60) or " "
        names[name if name not in names else f"{name} ({number})"] = None
    return list(names)
