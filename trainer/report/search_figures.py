"""Figures of a search: its runs as lines over their settings, score by setting, score by epoch.

In: the record of the search, its space, and the curves of its runs. Out: `Plot`s. A run has the
same colour in each, by its score, the best orange. Names pass through `plotly_text`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.pages.plots import SERIES_COLOURS, Plot, plotly_text, rounded, short_label
from trainer.checkpoints.progress import EpochResult
from trainer.report.figures import CURVE_HEIGHT_PX, METRIC_TITLES
from trainer.studies.search.record import SearchRecord, SearchRun
from trainer.studies.search.result import show
from trainer.studies.search.space import Dimension, Range, Space, Values

_BEST = SERIES_COLOURS[1]
_LOW, _HIGH = (150, 158, 170), (63, 116, 209)
"""Colours of the worst and of the second-best score."""
_RULER = "rgba(138,143,152,0.45)"
_AXIS_WIDTH_PX = 150
_PARALLEL_HEIGHT_PX = 380
_WIDE = 500
"""Ratio of the ends of an axis above which it names only powers of ten."""
_MAX_TICKS = 12
"""The most values of a setting that are named on its axis."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """One of the parallel axes."""

    title: str
    shares: dict[int, float]
    """Height of each run, by its number, from 0 to 1."""
    texts: dict[int, str]
    ticks: list[tuple[float, str]]
    """Heights and texts."""


def search_plots(
    record: SearchRecord,
    space: Space,
    curves: Mapping[int, Sequence[EpochResult]],
) -> list[Plot]:
    """All figures; none of them without a run that has a score.

    Args:
        record: the search.
        space: its space.
        curves: epochs of the runs that have a score, by their numbers.
    """
    runs = [run for run in record.trials if _score(record, run) is not None]
    if not runs:
        return []
    # The best is drawn last, above the others.
    runs.sort(key=lambda run: (run.number == record.best, _score(record, run)))
    by_setting = [
        _setting_plot(record, runs, dimension, number) for number, dimension in enumerate(space)
    ]
    return [_parallel_plot(record, runs, space), *by_setting, _curves_plot(record, runs, curves)]


def _score(record: SearchRecord, run: SearchRun) -> float | None:
    return run.scores.get(record.metric)


def colours(record: SearchRecord) -> dict[int, str]:
    """The colour of each run that has a score, by its number."""
    scores = {run.number: _score(record, run) for run in record.trials}
    defined = {number: score for number, score in scores.items() if score is not None}
    low, high = min(defined.values(), default=0.0), max(defined.values(), default=0.0)
    mixed = {}
    for number, score in defined.items():
        share = (score - low) / (high - low) if high > low else 1.0
        parts = [round(a + share * (b - a)) for a, b in zip(_LOW, _HIGH, strict=True)]
        mixed[number] = f"rgb({','.join(map(str, parts))})"
    if record.best in mixed:
        mixed[record.best] = _BEST
    return mixed


def _parallel_plot(record: SearchRecord, runs: Sequence[SearchRun], space: Space) -> Plot:
    axes = [_setting_axis(dimension, runs) for dimension in space]
    axes.append(_score_axis(record, runs))
    positions = list(range(len(axes)))
    colour_of = colours(record)
    data = [
        _trace(record, run, colour_of[run.number], mode="lines+markers")
        | {
            "x": positions,
            "y": [rounded(axis.shares[run.number]) for axis in axes],
            "customdata": [
                f"{plotly_text(axis.title)} {plotly_text(axis.texts[run.number])}" for axis in axes
            ],
            "hovertemplate": "%{customdata}<extra>%{fullData.name}</extra>",
            "cliponaxis": False,
        }
        for run in runs
    ]
    annotations = [
        {
            "x": position,
            "y": share,
            "text": short_label(text, 16),
            "xanchor": "left" if position == len(space) else "right",
            "xshift": 9 if position == len(space) else -9,
            "showarrow": False,
            "font": {"size": 11},
        }
        for position, axis in enumerate(axes)
        for share, text in axis.ticks
    ]
    rulers = [
        {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "layer": "below"}
        | {"line": {"color": _RULER, "width": 1}}
        for x in positions
    ]
    layout = {
        "height": _PARALLEL_HEIGHT_PX,
        "xaxis": {
            "side": "top",
            "tickvals": positions,
            "ticktext": [f"<b>{short_label(axis.title)}</b>" for axis in axes],
            "range": [-0.4, len(axes) - 0.65],
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
            "tickangle": 0,
            "tickfont": {"size": 11},
        },
        "yaxis": {"visible": False, "range": [-0.05, 1.05]},
        "margin": {"l": 8, "r": 8, "t": 34, "b": 8},
        "annotations": annotations,
        "shapes": rulers,
        "hovermode": "closest",
    }
    return Plot(
        key="parallel",
        title="Settings and score of each run",
        caption="A line is a run. " + _meaning(record, runs),
        summary=f"Parallel coordinates of {len(runs)} runs over {', '.join(record.space)} and "
        f"{record.metric}; the table of runs has the numbers.",
        figure={"data": data, "layout": layout},
        height_px=_PARALLEL_HEIGHT_PX,
        min_width_px=_AXIS_WIDTH_PX * len(axes) if len(axes) > 2 else 0,
        fills_width=True,
    )


def _meaning(record: SearchRecord, runs: Sequence[SearchRun]) -> str:
    text = "The bluer, the higher its score; the best is orange."
    stopped = any(run.state == "stopped" for run in runs)
    return text + (" Dotted: stopped early." if stopped else "")


def _setting_axis(dimension: Dimension, runs: Sequence[SearchRun]) -> _Axis:
    values = {run.number: run.settings[dimension.setting] for run in runs}
    if isinstance(dimension, Range):
        ends = [dimension.low, dimension.high]
        if dimension.is_log and not dimension.is_whole:
            ends += _decades(dimension.low, dimension.high)
        ticks = [(dimension.share(end), show(end)) for end in ends]
    else:
        ticks = [(dimension.share(value), show(value)) for value in dimension.values]
        # Whole steps between the names that there is room for.
        ticks = ticks[:: math.ceil(len(ticks) / _MAX_TICKS)]
    return _Axis(
        title=dimension.setting,
        shares={number: dimension.share(value) for number, value in values.items()},
        texts={number: show(value) for number, value in values.items()},
        ticks=ticks,
    )


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten within a range, unless they are close to its ends."""
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    room = (high / low) ** 0.08
    return [10.0**power for power in powers if low * room < 10.0**power < high / room]


def _score_axis(record: SearchRecord, runs: Sequence[SearchRun]) -> _Axis:
    scores = {run.number: run.scores[record.metric] or 0.0 for run in runs}
    low, high = min(scores.values()), max(scores.values())
    spread = (high - low) or 1.0
    return _Axis(
        title=METRIC_TITLES[record.metric],
        shares={number: (score - low) / spread for number, score in scores.items()},
        texts={number: f"{score:.4f}" for number, score in scores.items()},
        ticks=[(share, f"{low + share * spread:.3f}") for share in (0.0, 0.5, 1.0)],
    )


def _setting_plot(
    record: SearchRecord, runs: Sequence[SearchRun], dimension: Dimension, number: int
) -> Plot:
    name = dimension.setting
    values = [run.settings[dimension.setting] for run in runs]
    is_number = all(type(value) in (int, float) for value in values)
    colour_of = colours(record)
    data = [
        _trace(record, run, colour_of[run.number], mode="markers")
        | {
            "x": [run.settings[dimension.setting] if is_number else short_label(show(value))],
            "y": [rounded(run.scores[record.metric])],
            "hovertemplate": f"{plotly_text(name)} {plotly_text(show(value))}<br>%{{y:.4f}}"
            "<extra>%{fullData.name}</extra>",
        }
        for run, value in zip(runs, values, strict=True)
    ]
    xaxis: dict[str, Any] = {"title": {"text": plotly_text(name), "standoff": 6}, "zeroline": False}
    if not is_number:
        order = dimension.values if isinstance(dimension, Values) else values
        shown = [short_label(show(value)) for value in order]
        xaxis |= {"type": "category", "categoryorder": "array", "categoryarray": shown}
    elif dimension.is_log:
        # 1, 2 and 5 in each decade, if there are few.
        is_wide = max(values) / min(values) > _WIDE
        tick_format = "~e" if max(values) < 1 else "~g"
        xaxis |= {"type": "log", "tickformat": tick_format, "dtick": 1 if is_wide else "D2"}
    return Plot(
        key=f"setting-{number}",
        title=f"{METRIC_TITLES[record.metric]} by {name}",
        caption="A dot is a run, with whatever other settings it has."
        if len(record.space) > 1
        else "A dot is a run.",
        summary=f"Scatter plot of {record.metric} by {name}; the table of runs has the numbers.",
        figure={"data": data, "layout": _layout(xaxis) | {"hovermode": "closest"}},
        height_px=CURVE_HEIGHT_PX,
    )


def _curves_plot(
    record: SearchRecord, runs: Sequence[SearchRun], curves: Mapping[int, Sequence[EpochResult]]
) -> Plot:
    colour_of = colours(record)
    data = []
    for run in runs:
        epochs = curves.get(run.number, ())
        mode = "lines" if len(epochs) > 30 else "lines+markers"
        data.append(
            _trace(record, run, colour_of[run.number], mode=mode)
            | {
                "x": [result.epoch for result in epochs],
                "y": [rounded(getattr(result, record.metric)) for result in epochs],
                "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
            }
        )
    last = max((result.epoch for epochs in curves.values() for result in epochs), default=1)
    ticks = {"tick0": 0, "dtick": max(1, math.ceil(last / 8))}
    xaxis = {"title": {"text": "epoch", "standoff": 6}, "zeroline": False, **ticks}
    return Plot(
        key="curves",
        title=f"{METRIC_TITLES[record.metric]} by epoch",
        caption="A line is a run. " + _meaning(record, runs),
        summary=f"Line chart of {record.metric} by epoch of each run.",
        figure={"data": data, "layout": _layout(xaxis) | {"hovermode": "closest"}},
        height_px=CURVE_HEIGHT_PX,
    )


def _trace(record: SearchRecord, run: SearchRun, colour: str, *, mode: str) -> dict[str, Any]:
    is_best = run.number == record.best
    is_stopped = run.state == "stopped"
    return {
        "type": "scatter",
        "mode": mode,
        "name": f"run {run.number}",
        "legendgroup": f"run-{run.number}",
        "line": {
            "color": colour,
            "width": 3 if is_best else 1.5,
            "dash": "dot" if is_stopped else "solid",
        },
        "marker": {
            "color": colour,
            "size": (10 if is_best else 8) if mode == "markers" else (7 if is_best else 5),
            "symbol": "circle-open" if is_stopped else "circle",
        },
    }


def _layout(xaxis: dict[str, Any]) -> dict[str, Any]:
    return {
        "height": CURVE_HEIGHT_PX,
        "xaxis": xaxis,
        "yaxis": {"automargin": True, "zeroline": False, "nticks": 6},
        "margin": {"l": 44, "r": 12, "t": 8, "b": 40},
    }
