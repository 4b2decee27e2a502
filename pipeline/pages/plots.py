"""Parts that the figures of all pages use, and the figure of clips per class.

A `Plot` holds the `data` and `layout` that `Plotly.newPlot` of plotly.js takes, as plain data.
The page sets the colours of text, grid and background, since it knows whether it is light or dark.

Labels, clip and run names can be any text. plotly.js interprets some HTML in texts, so each of them
passes through `plotly_text`.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SERIES_COLOURS = (
    "#3f74d1",
    "#d5702b",
    "#2b9a7c",
    "#b24a93",
    "#8f7a1a",
    "#7a64c8",
    "#c5504f",
    "#4c93b3",
)
"""Of runs or splits, in order, then from the start: readable on white and on near-black."""

MAX_LABEL_CHARS = 24
"""Longest label beside an axis; hovering shows it in full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plot:
    """One figure of the page."""

    key: str
    """Unique within the page."""
    title: str
    caption: str
    summary: str
    """Text alternative, for screen readers."""
    figure: dict[str, Any]
    """`data` and `layout` of plotly.js."""
    height_px: int
    min_width_px: int = 0
    """On a narrower page the figure scrolls sideways."""
    fills_width: bool = False
    """Whether a figure with such a width grows with the page."""
    legend: tuple[tuple[str, str], ...] = field(default=())
    """Names and colours of the series, shown above the figure."""


def plotly_text(text: str) -> str:
    """A text escaped so that plotly.js shows it literally, tags and entities included."""
    return html.escape(text, quote=False)


def short_label(label: str, max_chars: int = MAX_LABEL_CHARS) -> str:
    """A label shortened to fit beside an axis, for plotly.js."""
    short = label if len(label) <= max_chars else label[: max_chars - 1].rstrip() + "…"
    return plotly_text(short)


def series_colour(index: int) -> str:
    """Colour of the run or split with this number, from 0."""
    return SERIES_COLOURS[index % len(SERIES_COLOURS)]


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
            # A logarithmic axis cannot show a zero.
            "x": [split_counts.get(label, 0) or None for label in ordered],
            "y": list(range(len(ordered))),
            "marker": {"color": series_colour(number)},
            "customdata": [plotly_text(label) for label in ordered],
            "hovertemplate": "<b>%{customdata}</b><br>%{x} clips<extra>%{fullData.name}</extra>",
        }
        for number, (split, split_counts) in enumerate(counts.items())
    ]
    layout = bar_layout(ordered, per_row_px=12 + 7 * len(counts)) | {"barmode": "group"}
    layout["xaxis"] |= {"type": "log", "dtick": 1} if is_wide else {"rangemode": "tozero"}
    return Plot(
        key="class-counts",
        title="Clips per class",
        caption="Most frequent first" + (", on a logarithmic axis." if is_wide else "."),
        summary=f"Bar chart of clips per class in the splits {', '.join(counts)}.",
        figure={"data": data, "layout": layout},
        height_px=layout["height"],
        legend=tuple((split, series_colour(number)) for number, split in enumerate(counts)),
    )


def bar_layout(labels: Sequence[str], *, per_row_px: int = 22) -> dict[str, Any]:
    """Horizontal bars at y = 0 to len - 1, the first on top, the scale above them."""
    return {
        "height": 44 + len(labels) * per_row_px,
        "bargap": 0.28,
        "xaxis": {"side": "top", "zeroline": False, "automargin": True},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(labels))),
            "ticktext": [short_label(label) for label in labels],
            "range": [len(labels) - 0.5, -0.5],
            "automargin": True,
            # Without these two, plotly.js compares every pair of labels: 5 s for 500 labels.
            "tickangle": 0,
            "ticklabeloverflow": "allow",
            "ticklabelstandoff": 6,
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
        "margin": {"l": 10, "r": 24, "t": 26, "b": 8},
    }


def rounded(value: float | None) -> float | None:
    """A number with no more digits than a figure can show, to keep the page small."""
    return None if value is None else float(f"{value:.6g}")
