"""The page of a source's coverage: how many listed clips were found, and what it means for scores.

In: the counts that a manifest carries (`Manifest.coverage`): clips listed, found, missing and
unreadable, by split, in total and by class. Steps: compute shares; sort the classes, worst first.
Out: one HTML file that needs no network, or a section of the page of a data set.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.manifest.coverage import Coverage, ListedClips
from pipeline.pages import page
from pipeline.terminal import units

_TEMPLATE = Path(__file__).with_name("coverage_page.html.jinja")

_KINDS = (("found", "#3f74d1"), ("missing", "#c3c8cf"), ("unreadable", "#d5702b"))
"""What can become of a listed clip, with a colour for each."""

_NUM_AUDIOSET_CLASSES = 527
_TRAINING_SPLITS = ("train", "balanced")
"""Parts of the names of splits that models are trained on, and so not scored on."""

Section = dict[str, Any]
"""Values for a template."""


def write_coverage_page(path: str, coverage: Coverage, title: str) -> None:
    """Write the page of a source's coverage.

    Args:
        path: the page, local or in a bucket.
        coverage: the counts.
        title: the name of the data.
    """
    section = coverage_section(coverage)
    values = {"title": title, "coverage": section, "tiles": _tiles(coverage, section)}
    page.write_page(path, _TEMPLATE, values)


def coverage_section(coverage: Coverage) -> Section:
    """The coverage with shares, classes worst first, as `coverage_parts.html.jinja` shows it."""
    rows = [_row(name, counts) for name, counts in coverage.splits.items()]
    # Classes without a listed clip have no share, and come last.
    classes = [
        asdict(entry) | {"share": entry.found / entry.official if entry.official else None}
        for entry in coverage.classes
    ]
    classes.sort(key=lambda entry: (entry["share"] is None, entry["share"], entry["label"]))
    listed = [entry for entry in classes if entry["official"]]
    return {
        "source": coverage.source,
        "kinds": _KINDS,
        "rows": rows,
        "scored": [
            row for row in rows if not any(part in row["name"] for part in _TRAINING_SPLITS)
        ],
        "total": _row("All", coverage.total),
        "classes": classes,
        "num_listed": len(listed),
        "median_share": listed[len(listed) // 2]["share"] if listed else None,
        "empty": [entry["label"] for entry in listed if not entry["found"]],
        "common": coverage.common,
        "is_audioset": len(classes) == _NUM_AUDIOSET_CLASSES,
    }


def _row(name: str, counts: ListedClips) -> Section:
    whole = max(1, counts.listed)
    parts = [(kind, colour, getattr(counts, kind) / whole) for kind, colour in _KINDS]
    return {"name": name, "counts": counts, "parts": parts}


def _tiles(coverage: Coverage, section: Section) -> list[Section]:
    total, common = coverage.total, coverage.common
    tiles = [
        ("Found", units.percent(total.share), units.counted(total.found, "clip")),
        ("Missing", units.count(total.missing), "listed, but no file"),
        ("Unreadable", units.count(total.unreadable), "empty files"),
        ("Audio found", units.duration(total.found_s), ""),
    ]
    if section["classes"]:
        least = section["classes"][0]
        tiles.append(("Least covered class", units.percent(least["share"]), least["label"]))
    if common:
        whole = f"{units.count(common.found)} of {units.counted(common.listed, 'clip')}"
        tiles.append(("Common subset", units.percent(common.share), whole))
    return [
        {"label": label, "value": value, "details": [detail] if detail else []}
        for label, value, detail in tiles
    ]
