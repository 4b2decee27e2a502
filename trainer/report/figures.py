"""Numbers of training runs to interactive figures, as plain data that plotly.js draws.

In: histories, metrics per class, a confusion matrix, counts, durations. Out: `Plot`s, whose
`figure` holds the `data` and `layout` that `Plotly.newPlot` takes. Colours of text, grid and
background are left to the page, which knows whether it is light or dark.

Labels, clip and run names are whatever somebody called their files. plotly.js reads some HTML in
texts, so each of them passes through `plotly_text`.

Shapes: C classes, R runs.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

RUN_COLOURS = (
    "#3f74d1",
    "#d5702b",
    "#2b9a7c",
    "#b24a93",
    "#8f7a1a",
    "#7a64c8",
    "#c5504f",
    "#4c93b3",
)
"""Colours of runs, in their order, then from the start: readable on white and on near-black."""

MAX_POINTS = 800
"""Points of a curve over single steps; a longer history is averaged in equal stretches."""

MAX_LABEL_CHARS = 24
"""Characters of a label beside an axis; the full label is shown on hovering."""

_EPOCH_METRICS = (
    ("mAP", "mAP", "Mean over classes of average precision."),
    ("mAUC", "mAUC", "Mean over classes of the area under the ROC curve."),
    ("d_prime", "d′", "d-prime, from mAUC."),
    ("accuracy", "Accuracy", "Share of clips whose highest score is one of their labels."),
)
_MUTED = "#8a8f98"
_BLUE = RUN_COLOURS[0]
_ORANGE = RUN_COLOURS[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """What one run logged; entries as in `history.json`."""

    name: str
    steps: list[dict[str, Any]]
    epochs: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """One class of the evaluation, over R runs."""

    label: str
    positives: str
    """How many positive clips it has; a range where the runs' evaluations differ."""
    chance: float
    """AP that random scores reach: the class's share of the clips."""
    values: tuple[float | None, ...]
    """AP in each run, None where undefined."""

    @property
    def mean(self) -> float | None:
        """Mean AP over the runs where it is defined."""
        defined = [value for value in self.values if value is not None]
        return math.fsum(defined) / len(defined) if defined else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One figure of the page."""

    key: str
    """Unique within the page."""
    title: str
    caption: str
    summary: str
    """What it shows, for those who do not see it."""
    figure: dict[str, Any]
    """`data` and `layout` of plotly.js."""
    height_px: int
    min_width_px: int = 0
    """Where the page is narrower, the figure scrolls sideways."""
    legend: tuple[tuple[str, str], ...] = field(default=())
    """Name and colour of what is drawn, shown above the figure."""


def plotly_text(text: str) -> str:
    """A text that plotly.js shows as it is, tags and entities included."""
    return html.escape(text, quote=False)


def short_label(label: str, max_chars: int = MAX_LABEL_CHARS) -> str:
    """A label cut to fit beside an axis, for plotly.js."""
    cut = label if len(label) <= max_chars else label[: max_chars - 1].rstrip() + "…"
    return plotly_text(cut)


def run_colour(index: int) -> str:
    """Colour of the run with this number, from 0."""
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def history_plots(runs: Sequence[History]) -> list[Plot]:
    """Loss, learning rate and each metric that some epoch has, all runs in each figure."""
    metrics = [_metric_plot(runs, *metric) for metric in _EPOCH_METRICS]
    plots = [_loss_plot(runs), _lr_plot(runs), *metrics]
    return [plot for plot in plots if plot.figure["data"]]


def class_plot(rows: Sequence[ClassRow], run_names: Sequence[str]) -> Plot:
    """Average precision per class, best first; classes without one must be left out before."""
    ordered = sorted(rows, key=lambda row: (-(row.mean or 0.0), row.label))
    places = list(range(len(ordered)))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [_rounded(row.mean) for row in ordered],
        "y": places,
        "marker": {"color": _BLUE, "opacity": 0.85},
        "text": [f"{row.mean:.3f}" for row in ordered],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [[plotly_text(row.label), row.positives] for row in ordered],
        "hovertemplate": "<b>%{customdata[0]}</b><br>AP %{x:.4f}<br>"
        "%{customdata[1]} positive clips<extra></extra>",
    }
    data = [bars, *_run_dots(ordered, run_names), _chance_marks(ordered)]
    return Plot(
        key="classes",
        title="Average precision per class",
        caption="Best class first. The thin stroke in each bar is chance, the class's share of "
        "the clips." + _dots_caption(run_names),
        summary=f"Bar chart of average precision for {len(ordered)} classes, best first: "
        f"from {ordered[0].label} ({ordered[0].mean:.3f}) "
        f"to {ordered[-1].label} ({ordered[-1].mean:.3f}).",
        figure={
            "data": data,
            "layout": _bar_layout([row.label for row in ordered], x_range=[0, 1.12])
            | {"barmode": "overlay"},
        },
        height_px=_bar_height(len(ordered)),
    )


def confusion_plot(counts: NDArray[np.int64], labels: Sequence[str]) -> Plot:
    """A confusion matrix: `counts[true, predicted]` `[C, C]`, shown as shares of each row."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num_classes = len(labels)
    names = _unique_names(labels)
    cells: dict[str, Any] = {
        "type": "heatmap",
        "z": np.round(counts / totals, 3).tolist(),
        "x": names,
        "y": names,
        "customdata": counts.tolist(),
        "zmin": 0,
        "zmax": 1,
        # Shades of one colour over no colour, so that the page's own background is the zero.
        "colorscale": [[0, "rgba(63,116,209,0)"], [0.02, "rgba(63,116,209,0.1)"], [1, _BLUE]],
        "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0, "len": 0.6},
        "hovertemplate": "true <b>%{y}</b><br>predicted <b>%{x}</b><br>"
        "%{customdata} clips, %{z:.1%} of the true class<extra></extra>",
    }
    if num_classes <= 16:
        cells |= {"text": np.where(counts, counts, "").tolist(), "texttemplate": "%{text}"}
    side_px = 190 + num_classes * _cell_px(num_classes)
    axis = {"type": "category", "ticks": "", "showgrid": False, "automargin": True}
    if num_classes <= 60:
        axis |= {"tickmode": "array", "tickvals": names}
    return Plot(
        key="confusions",
        title="Confusion matrix",
        caption="Rows are true classes, columns what was predicted; a shade is the share of the "
        "row. Drag to enlarge a part, double-click to return.",
        summary=f"Confusion matrix of {num_classes} classes; the most frequent confusions are "
        "in the table beside it.",
        figure={
            "data": [cells],
            "layout": {
                "height": side_px,
                "xaxis": axis | {"title": {"text": "predicted"}, "tickangle": -45},
                "yaxis": axis | {"title": {"text": "true"}, "autorange": "reversed"},
                "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
            },
        },
        height_px=side_px,
        min_width_px=min(side_px, 640),
    )


def counts_plot(counts: dict[str, dict[str, int]], labels: Sequence[str]) -> Plot:
    """Clips per class in each split, the most frequent class first."""
    totals = {label: sum(split.get(label, 0) for split in counts.values()) for label in labels}
    ordered = sorted(labels, key=lambda label: (-totals[label], label))
    present = [count for split in counts.values() for count in split.values() if count > 0]
    is_wide = bool(present) and max(present) > 50 * min(present)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": plotly_text(split),
            # A logarithmic axis has no place for a zero.
            "x": [split_counts.get(label, 0) or None for label in ordered],
            "y": list(range(len(ordered))),
            "marker": {"color": run_colour(number)},
            "customdata": [plotly_text(label) for label in ordered],
            "hovertemplate": "<b>%{customdata}</b><br>%{x} clips<extra>%{fullData.name}</extra>",
        }
        for number, (split, split_counts) in enumerate(counts.items())
    ]
    layout = _bar_layout(ordered, per_row_px=14 + 8 * len(counts)) | {"barmode": "group"}
    layout["xaxis"] |= {"type": "log", "dtick": 1} if is_wide else {"rangemode": "tozero"}
    return Plot(
        key="class-counts",
        title="Clips per class",
        caption="Most frequent first" + (", on a logarithmic axis." if is_wide else "."),
        summary=f"Bar chart of clips per class in the splits {', '.join(counts)}.",
        figure={"data": data, "layout": layout},
        height_px=layout["height"],
        legend=tuple((split, run_colour(number)) for number, split in enumerate(counts)),
    )


def duration_plot(runs: Sequence[History]) -> Plot | None:
    """Seconds of training and evaluation: per epoch for one run, in all for several."""
    timed = [(number, run) for number, run in enumerate(runs) if run.epochs]
    if not timed:
        return None
    if len(runs) == 1:
        names = [f"epoch {entry['epoch']}" for entry in runs[0].epochs]
        groups = [[entry] for entry in runs[0].epochs]
    else:
        names = [run.name for _, run in timed]
        groups = [run.epochs for _, run in timed]
    parts = (("training", "train_s", _BLUE), ("evaluation", "eval_s", _ORANGE))
    layout = _bar_layout(names) | {"barmode": "stack"}
    layout["xaxis"] |= {"title": {"text": "seconds"}, "rangemode": "tozero"}
    return Plot(
        key="durations",
        title="Seconds per epoch" if len(runs) == 1 else "Seconds per run",
        caption="",
        summary="Stacked bars of the seconds spent on training and on evaluation.",
        figure={
            "data": [_duration_bars(part, names, groups) for part in parts],
            "layout": layout,
        },
        height_px=layout["height"],
        legend=tuple((name, colour) for name, _, colour in parts),
    )


def thinned(values: Sequence[float | None], max_points: int) -> tuple[list[float | None], int]:
    """Means over stretches of equal length (the last may be shorter), and that length.

    A stretch without any number is None.
    """
    length = max(1, math.ceil(len(values) / max_points))
    means: list[float | None] = []
    for start in range(0, len(values), length):
        defined = [value for value in values[start : start + length] if value is not None]
        means.append(_rounded(math.fsum(defined) / len(defined)) if defined else None)
    return means, length


def _loss_plot(runs: Sequence[History]) -> Plot:
    data: list[dict[str, Any]] = []
    stretch = 1
    for number, run in enumerate(runs):
        losses, length = thinned([entry.get("loss") for entry in run.steps], MAX_POINTS)
        steps = [entry["step"] for entry in run.steps][length - 1 :: length]
        stretch = max(stretch, length)
        if any(loss is not None for loss in losses):
            faint = _line(run.name, number, steps, losses, mode="lines") | {
                "opacity": 0.35,
                "hoverinfo": "skip",
            }
            faint["line"]["width"] = 1
            data.append(faint)
        for key, what, dash in (("train_loss", "training", "solid"), ("eval_loss", "eval", "dot")):
            data += _epoch_line(run, number, "step", key, f"{run.name}, {what}", dash=dash)
    per_point = f" (means of {stretch})" if stretch > 1 else ""
    return _curve_plot(
        "loss",
        "Loss",
        f"Solid: training, mean of an epoch. Dotted: evaluation. Faint: single steps{per_point}.",
        data,
        x_title="step",
    )


def _lr_plot(runs: Sequence[History]) -> Plot:
    data: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        # Every k-th value as it was: means would blur the steps of the schedule.
        length = max(1, math.ceil(len(run.steps) / MAX_POINTS))
        kept = [entry for entry in run.steps[::length] if entry.get("lr") is not None]
        if kept:
            steps = [entry["step"] for entry in kept]
            line = _line(run.name, number, steps, [entry["lr"] for entry in kept], mode="lines")
            line["line"]["shape"] = "hv"
            data.append(line | {"hovertemplate": "%{y:.3g}"})
    plot = _curve_plot("lr", "Learning rate", "At each step.", data, x_title="step")
    plot.figure["layout"]["yaxis"] |= {"exponentformat": "e", "rangemode": "tozero"}
    return plot


def _metric_plot(runs: Sequence[History], key: str, title: str, caption: str) -> Plot:
    data: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        data += _epoch_line(run, number, "epoch", key, run.name)
    plot = _curve_plot(key.replace("_", "-"), title, caption, data, x_title="epoch")
    last = max((entry["epoch"] for run in runs for entry in run.epochs), default=1)
    plot.figure["layout"]["xaxis"] |= {"tick0": 0, "dtick": max(1, math.ceil(last / 8))}
    return plot


def _curve_plot(
    key: str, title: str, caption: str, data: list[dict[str, Any]], *, x_title: str
) -> Plot:
    return Plot(
        key=f"curve-{key}",
        title=title,
        caption=caption,
        summary=f"Line chart of {title} by {x_title}; the table of epochs has the numbers.",
        figure={
            "data": data,
            "layout": {
                "height": 260,
                "hovermode": "x unified",
                "xaxis": {"title": {"text": x_title, "standoff": 6}, "zeroline": False},
                "yaxis": {"automargin": True, "zeroline": False, "nticks": 6},
                "margin": {"l": 44, "r": 12, "t": 8, "b": 40},
            },
        },
        height_px=260,
    )


def _epoch_line(
    run: History, number: int, x_key: str, y_key: str, name: str, *, dash: str = "solid"
) -> list[dict[str, Any]]:
    """The curve of one value over the epochs, or none if no epoch has it."""
    values = [_rounded(entry.get(y_key)) for entry in run.epochs]
    if all(value is None for value in values):
        return []
    # With many epochs the markers would hide the line; a single epoch is nothing but a marker.
    mode = "lines+markers" if len(values) <= 40 else "lines"
    places = [entry[x_key] for entry in run.epochs]
    line = _line(name, number, places, values, mode=mode)
    line["line"]["dash"] = dash
    return [line | {"hovertemplate": "%{y:.4f}"}]


def _line(
    name: str, number: int, x: Sequence[int], y: Sequence[float | None], *, mode: str
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": mode,
        "name": plotly_text(name),
        "legendgroup": f"run-{number}",
        "x": list(x),
        "y": list(y),
        "line": {"color": run_colour(number), "width": 2},
        "marker": {"size": 5},
    }


def _run_dots(rows: Sequence[ClassRow], run_names: Sequence[str]) -> list[dict[str, Any]]:
    """One dot per class and run; nothing for a single run, whose value is the bar."""
    if len(run_names) < 2:
        return []
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": plotly_text(name),
            "x": [_rounded(row.values[number]) for row in rows],
            "y": list(range(len(rows))),
            "marker": {
                "color": run_colour(number),
                "size": 6,
                "line": {"width": 1, "color": "rgba(255,255,255,0.8)"},
            },
            "hovertemplate": "AP %{x:.4f}<extra>%{fullData.name}</extra>",
        }
        for number, name in enumerate(run_names)
    ]


def _dots_caption(run_names: Sequence[str]) -> str:
    return " The bar is the mean of the runs, a dot each run." if len(run_names) > 1 else ""


def _chance_marks(rows: Sequence[ClassRow]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "chance",
        "x": [_rounded(row.chance) for row in rows],
        "y": list(range(len(rows))),
        "marker": {
            "symbol": "line-ns-open",
            "size": 11,
            "color": _MUTED,
            "line": {"width": 1.5, "color": _MUTED},
        },
        "hoverinfo": "skip",
    }


def _duration_bars(
    part: tuple[str, str, str], names: Sequence[str], groups: Sequence[list[dict[str, Any]]]
) -> dict[str, Any]:
    title, key, colour = part
    return {
        "type": "bar",
        "orientation": "h",
        "name": title,
        "x": [_rounded(math.fsum(entry.get(key) or 0 for entry in group)) for group in groups],
        "y": list(range(len(names))),
        "marker": {"color": colour},
        "customdata": [plotly_text(name) for name in names],
        "hovertemplate": "<b>%{customdata}</b><br>%{x:.1f} s<extra>%{fullData.name}</extra>",
    }


def _bar_layout(
    labels: Sequence[str], *, x_range: list[float] | None = None, per_row_px: int = 22
) -> dict[str, Any]:
    """Horizontal bars at the places 0 to len - 1, the first on top, the scale above them."""
    x_axis: dict[str, Any] = {"side": "top", "zeroline": False, "automargin": True}
    if x_range is not None:
        x_axis |= {"range": x_range, "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    return {
        "height": _bar_height(len(labels), per_row_px),
        "bargap": 0.28,
        "xaxis": x_axis,
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(labels))),
            "ticktext": [short_label(label) for label in labels],
            "range": [len(labels) - 0.5, -0.5],
            "automargin": True,
            # Without these two, plotly.js compares every label with every other: 500 take 5 s.
            "tickangle": 0,
            "ticklabeloverflow": "allow",
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
        "margin": {"l": 10, "r": 24, "t": 34, "b": 8},
    }


def _bar_height(num_rows: int, per_row_px: int = 22) -> int:
    return 56 + num_rows * per_row_px


def _cell_px(num_classes: int) -> int:
    """Side of a cell, in pixels: large for few classes, as small as fits a page for many."""
    return max(1, min(34, 720 // num_classes))


def _unique_names(labels: Sequence[str]) -> list[str]:
    """Short labels as the names of categories, which must differ for plotly.js."""
    names: dict[str, None] = {}
    for number, label in enumerate(labels):
        name = short_label(label) or " "
        names[name if name not in names else f"{name} ({number})"] = None
    return list(names)


def _rounded(value: float | None) -> float | None:
    """A number with the digits that a figure can show: it keeps the page small."""
    return None if value is None else float(f"{value:.6g}")
