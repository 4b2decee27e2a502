"""Interactive figures of training runs, as plain data that plotly.js draws.

In: histories, metrics per class, durations. Out: `Plot`s. Run names and labels are untrusted text
and pass through `plotly_text`.

Shapes: R runs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.pages.plots import (
    SERIES_COLOURS,
    Plot,
    bar_layout,
    plotly_text,
    rounded,
    series_colour,
)
from pipeline.terminal.units import counted
from trainer.checkpoints.progress import CurvePoint, EpochResult
from trainer.optim.schedule import learning_rate
from trainer.optim.settings import ScheduleSettings
from trainer.scores.metrics import METRICS

MAX_POINTS = 800
"""Most points of a curve over steps; longer histories are averaged over equal intervals."""

CURVE_HEIGHT_PX = 250

METRIC_TITLES = dict(zip(METRICS, ("mAP", "mAUC", "d′", "Accuracy"), strict=True))
_METRIC_CAPTIONS = {
    "mAP": "Mean over classes of average precision.",
    "mAUC": "Mean over classes of the area under the ROC curve.",
    "d_prime": "d-prime, from mAUC.",
    "accuracy": "Share of clips whose highest score is one of their labels.",
}
_BLUE = SERIES_COLOURS[0]
_ORANGE = SERIES_COLOURS[1]
_GREY = "rgb(138,143,152)"


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCurves:
    """Curves that one run logged."""

    name: str
    steps: Sequence[CurvePoint]
    epochs: Sequence[EpochResult]
    published: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Published scores after each epoch, by metric, from the run's recipe."""
    schedule: ScheduleSettings | None = None
    """Schedule of its learning rate; None if unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """One class of the evaluation, over R runs."""

    label: str
    positives: str
    """Number of positive clips, or a range if the runs' evaluations differ."""
    chance: float
    """AP of random scores: the class's share of the clips."""
    values: tuple[float | None, ...]
    """AP in each run, None where undefined."""

    @property
    def mean(self) -> float | None:
        """Mean AP over the runs that define it."""
        defined = [value for value in self.values if value is not None]
        return math.fsum(defined) / len(defined) if defined else None


def history_plots(runs: Sequence[RunCurves]) -> list[Plot]:
    """Figures of loss, learning rate and each metric that was logged, with all runs in each."""
    metrics = [_metric_plot(runs, key) for key in METRICS]
    plots = [_loss_plot(runs), _lr_plot(runs), *metrics]
    return [plot for plot in plots if plot.figure["data"]]


def class_plot(
    rows: Sequence[ClassRow], run_names: Sequence[str], *, is_comparison: bool = False
) -> Plot:
    """Average precision per class, best first; every row must have a mean.

    `is_comparison`: the runs have different settings, so their mean is not drawn.
    """
    ordered = sorted(rows, key=lambda row: (-(row.mean or 0.0), row.label))
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [rounded(row.mean) for row in ordered],
        "y": list(range(len(ordered))),
        "marker": {"color": _BLUE if len(run_names) == 1 else "rgba(138,143,152,0.45)"},
        "customdata": [[plotly_text(row.label), row.positives] for row in ordered],
        "hovertemplate": "<b>%{customdata[0]}</b><br>AP %{x:.4f}<br>"
        "%{customdata[1]} positive clips<extra></extra>",
    }
    # A column right of the bars, where the numbers hide nothing.
    numbers = _marks("text", [1.02] * len(ordered)) | {
        "text": [f"{row.mean:.3f}" for row in ordered],
        "textposition": "middle right",
        "hoverinfo": "skip",
    }
    means = [] if is_comparison else [bars, numbers]
    chance = _marks("markers", [rounded(row.chance) for row in ordered]) | {
        "marker": {"symbol": "line-ns-open", "size": 13, "color": _ORANGE, "line": {"width": 2}},
        "hoverinfo": "skip",
    }
    layout = bar_layout([row.label for row in ordered])
    layout["xaxis"] |= {"range": [0, 1.12], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    several = " The bar is the mean of the runs, a dot each run." if len(run_names) > 1 else ""
    if is_comparison:
        several = " A dot is a run, in its colour."
    return Plot(
        key="classes",
        title="Average precision per class",
        caption=f"{counted(len(ordered), 'class', 'classes')}, best first. The thin stroke is "
        f"chance, the class's share of the clips.{several}",
        summary=f"Bar chart of average precision for {len(ordered)} classes, best first: "
        f"from {ordered[0].label} ({ordered[0].mean:.3f}) "
        f"to {ordered[-1].label} ({ordered[-1].mean:.3f}).",
        figure={
            "data": [*means[:1], *_run_dots(ordered, run_names), chance, *means[1:]],
            "layout": layout | {"barmode": "overlay"},
        },
        height_px=layout["height"],
    )


def duration_plot(runs: Sequence[RunCurves]) -> Plot | None:
    """Seconds of training and evaluation: by epoch for one run, totals for several."""
    timed = [run for run in runs if run.epochs]
    if not timed:
        return None
    is_single = len(runs) == 1
    groups = (
        [[result] for result in timed[0].epochs] if is_single else [[*run.epochs] for run in timed]
    )
    parts = (("training", "train_s", _BLUE), ("evaluation", "eval_s", _ORANGE))
    if is_single:
        layout = _curve_layout("epoch") | {"barmode": "stack", "bargap": 0.35}
        positions = [result.epoch for result in timed[0].epochs]
        # Room for at least eight epochs keeps the bars of one or two narrow.
        layout["xaxis"] |= _epoch_ticks(runs) | {"range": [0.4, max(8, *positions) + 0.6]}
    else:
        layout = bar_layout([run.name for run in timed]) | {"barmode": "stack"}
        positions = list(range(len(timed)))
    data = [_duration_bars(part, positions, groups, is_upright=is_single) for part in parts]
    return Plot(
        key="durations",
        title="Seconds of each epoch" if is_single else "Seconds of each run",
        caption="",
        summary="Stacked bars of the seconds spent on training and on evaluation.",
        figure={"data": data, "layout": layout},
        height_px=layout["height"],
        legend=tuple((name, colour) for name, _, colour in parts),
    )


def thinned(values: Sequence[float | None], max_points: int) -> tuple[list[float | None], int]:
    """Means over intervals of equal length (the last may be shorter), and that length.

    The mean of an interval without any number is None.
    """
    length = max(1, math.ceil(len(values) / max_points))
    means: list[float | None] = []
    for start in range(0, len(values), length):
        defined = [value for value in values[start : start + length] if value is not None]
        means.append(rounded(math.fsum(defined) / len(defined)) if defined else None)
    return means, length


def _loss_plot(runs: Sequence[RunCurves]) -> Plot:
    data: list[dict[str, Any]] = []
    longest = 1
    for number, run in enumerate(runs):
        losses, length = thinned([point.loss for point in run.steps], MAX_POINTS)
        # A mean is drawn at its last step; the last interval may be shorter.
        ends = [*run.steps[length - 1 :: length], *run.steps[-1:]]
        steps = [point.step for point in ends][: len(losses)]
        longest = max(longest, length)
        if any(loss is not None for loss in losses):
            faint = _line(run.name, number, steps, losses, mode="lines") | {
                "opacity": 0.35,
                "hoverinfo": "skip",
            }
            faint["line"]["width"] = 1
            data.append(faint)
        for key, label, dash in (("train_loss", "training", "solid"), ("eval_loss", "eval", "dot")):
            data += _epoch_line(run, number, "step", key, f"{run.name}, {label}", dash=dash)
    per_point = f" (means of {longest})" if longest > 1 else ""
    return _curve_plot(
        "loss",
        "Loss",
        "Solid: training, mean of an epoch. Dotted: evaluation. "
        f"Faint: training, as logged{per_point}.",
        data,
        x_title="step",
    )


def step_rates(run: RunCurves) -> list[tuple[int, float]]:
    """The learning rate at each change and at the last step, by steps counted from 1.

    Between two points of the history the rate follows the schedule, times the factor by which a
    divergence lowered it. Without a schedule: the logged points.
    """
    logged = [(point, point.lr) for point in run.steps if point.lr is not None]
    if run.schedule is None:
        return [(point.step, lr) for point, lr in logged]
    rates: list[tuple[int, float]] = []
    start = 0
    for point, lr in logged:
        end, epoch = point.step, point.epoch
        at_end = learning_rate(run.schedule, step=end - 1, epoch=epoch)
        factor = lr / at_end if at_end else 1.0
        for step in range(start, end):
            rate = learning_rate(run.schedule, step=step, epoch=epoch) * factor
            if not rates or rate != rates[-1][1]:
                rates.append((step + 1, rate))
        start = end
    return [*rates, (start, rates[-1][1])] if rates and rates[-1][0] < start else rates


def _lr_plot(runs: Sequence[RunCurves]) -> Plot:
    data: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        rates = step_rates(run)
        # Every k-th value, not a mean, which would blur the steps of the schedule.
        length = max(1, math.ceil(len(rates) / MAX_POINTS))
        if kept := rates[-1::-length][::-1]:
            steps, values = zip(*kept, strict=True)
            line = _line(run.name, number, steps, values, mode="lines")
            # Without a schedule, rates between logged points are unknown.
            line["line"]["shape"] = "hv" if run.schedule else "linear"
            data.append(line | {"hovertemplate": "%{y:.3g}"})
    are_exact = all(run.schedule for run in runs)
    caption = "At each step." if are_exact else "At the logged steps."
    plot = _curve_plot("lr", "Learning rate", caption, data, x_title="step")
    plot.figure["layout"]["yaxis"] |= {"tickformat": "~e", "rangemode": "tozero"}
    return plot


def _metric_plot(runs: Sequence[RunCurves], key: str) -> Plot:
    data: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        data += _epoch_line(run, number, "epoch", key, run.name)
    curves = dict.fromkeys(tuple(run.published.get(key, ())) for run in runs)
    data += [_published_line(values) for values in curves if values]
    name, title, caption = key.replace("_", "-"), METRIC_TITLES[key], _METRIC_CAPTIONS[key]
    plot = _curve_plot(name, title, caption, data, x_title="epoch")
    plot.figure["layout"]["xaxis"] |= _epoch_ticks(runs)
    if key != "d_prime":
        # All others lie in [0, 1]; the margin keeps markers on the edge whole.
        bounds = {"clipmin": -0.02, "clipmax": 1.02}
        plot.figure["layout"]["yaxis"] |= {"autorangeoptions": bounds}
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
            "layout": _curve_layout(x_title) | {"hovermode": "x unified"},
        },
        height_px=CURVE_HEIGHT_PX,
    )


def _curve_layout(x_title: str) -> dict[str, Any]:
    return {
        "height": CURVE_HEIGHT_PX,
        "xaxis": {"title": {"text": x_title, "standoff": 6}, "zeroline": False},
        "yaxis": {"automargin": True, "zeroline": False, "nticks": 6, "labelalias": {"0e+0": "0"}},
        "margin": {"l": 44, "r": 12, "t": 8, "b": 40},
    }


def _epoch_ticks(runs: Sequence[RunCurves]) -> dict[str, int]:
    """Whole numbers on an axis of epochs."""
    last = max((result.epoch for run in runs for result in run.epochs), default=1)
    return {"tick0": 0, "dtick": max(1, math.ceil(last / 8))}


def _epoch_line(
    run: RunCurves, number: int, x_key: str, y_key: str, name: str, *, dash: str = "solid"
) -> list[dict[str, Any]]:
    """The curve of one value over the epochs, or none if no epoch has it."""
    values = [rounded(getattr(result, y_key)) for result in run.epochs]
    if all(value is None for value in values):
        return []
    # With many epochs, markers would hide the line; a single epoch is only a marker.
    mode = "lines+markers" if len(values) <= 40 else "lines"
    xs = [getattr(result, x_key) for result in run.epochs]
    line = _line(name, number, xs, values, mode=mode)
    line["line"]["dash"] = dash
    return [line | {"hovertemplate": "%{y:.4f}"}]


def _published_line(values: Sequence[float]) -> dict[str, Any]:
    """Published scores of a recipe, drawn once for all its runs."""
    epochs = list(range(1, len(values) + 1))
    line = _line("published", 0, epochs, values, mode="lines+markers")
    return line | {
        "legendgroup": "published",
        "line": {"color": _GREY, "width": 2, "dash": "dash"},
        "hovertemplate": "%{y:.4f}",
    }


def _line(
    name: str, number: int, x: Sequence[int], y: Sequence[float | None], *, mode: str
) -> dict[str, Any]:
    line = {
        "type": "scatter",
        "mode": mode,
        "name": plotly_text(name),
        "legendgroup": f"run-{number}",
        "x": list(x),
        "y": list(y),
        "line": {"color": series_colour(number), "width": 2},
    }
    return line | ({"marker": {"size": 5}} if "markers" in mode else {})


def _run_dots(rows: Sequence[ClassRow], run_names: Sequence[str]) -> list[dict[str, Any]]:
    """One dot per class and run; none for a single run, whose value is the bar."""
    if len(run_names) == 1:
        return []
    return [
        _marks("markers", [rounded(row.values[number]) for row in rows])
        | {
            "name": plotly_text(name),
            "marker": {"color": series_colour(number), "size": 7},
            "hovertemplate": "AP %{x:.4f}<extra>%{fullData.name}</extra>",
        }
        for number, name in enumerate(run_names)
    ]


def _marks(mode: str, x: Sequence[float | None]) -> dict[str, Any]:
    """Markers or texts over horizontal bars, one per row."""
    return {
        "type": "scatter",
        "mode": mode,
        "x": list(x),
        "y": list(range(len(x))),
        "cliponaxis": False,
    }


def _duration_bars(
    part: tuple[str, str, str],
    positions: Sequence[int],
    groups: Sequence[list[EpochResult]],
    *,
    is_upright: bool,
) -> dict[str, Any]:
    name, key, colour = part
    sums = [rounded(math.fsum(getattr(result, key) or 0 for result in group)) for group in groups]
    along, across = ("x", "y") if is_upright else ("y", "x")
    return {
        "type": "bar",
        "orientation": "v" if is_upright else "h",
        "name": name,
        along: list(positions),
        across: sums,
        "marker": {"color": colour},
        "hovertemplate": f"%{{{across}:.1f}} s<extra>{name}</extra>",
    }
