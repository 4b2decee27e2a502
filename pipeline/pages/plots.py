"""What the figures of all pages share, and the figure of clips per class.

A `Plot` holds the `data` and `layout` that `Plotly.newPlot` of plotly.js takes, as plain data.
Colours of text, grid and background are left to the page, which knows whether it is light or dark.

Labels, clip and run names are whatever somebody called their files. plotly.js reads some HTML in
texts, so each of them passes through `plotly_text`.
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
"""Of runs or splits, in their order, then from the start: readable on white and on near-black."""

MAX_LABEL_CHARS = 24
"""Characters of a label beside an axis; the full label is shown on hovering."""


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
            # A logarithmic axis has no place for a zero.
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
    """Horizontal bars at the places 0 to len - 1, the first on top, the scale above them."""
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
            # Without these two, plotly.js compares every label with every other: 500 take 5 s.
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
    """A number with the digits that a figure can show: it keeps the page small."""
    return None if value is None else float(f"{value:.6g}")
