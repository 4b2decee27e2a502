"""The page of a prepared data set: its clips, what was rejected, and spectrograms of some clips.

In: the folder that `prepare` wrote, local or on S3. Steps: read the card, columns of the index, the
ledger of rejected clips and the summary of the last run; count in bins; draw twenty clips. Out:
`dataset.html` in that folder, one file that needs no network. Its size does not grow with the
number of clips.

Shapes: N clips.
"""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.card import Card
from pipeline.dataset.prepare_summary import read_summary
from pipeline.dataset.prepared import PreparedDataset, open_dataset, page_path, read_ledger
from pipeline.errors import UserError
from pipeline.fbank_settings import PUBLISHED_NORMS
from pipeline.manifest.coverage import Coverage, ListedClips
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.pages import page
from pipeline.pages.coverage_page import coverage_section
from pipeline.pages.player import Player
from pipeline.pages.plots import Plot, counts_plot, rounded, series_colour
from pipeline.pages.spectrogram import COLOURS, draw, energy_range
from pipeline.terminal import units

NUM_EXAMPLES = 20
NUM_REJECT_EXAMPLES = 5
"""Most ids shown of the clips rejected for one reason."""

_LEVEL_STEP_DB = 2
_MAX_BINS = 50
_HEIGHT_PX = 260
_TEMPLATE = Path(__file__).with_name("dataset_page.html.jinja")

FloatArray = NDArray[np.float64]
Section = dict[str, Any]
"""Values for a section of the template."""


def write_dataset_page(dataset_path: str) -> str:
    """Write the page of a prepared data set into its folder.

    Args:
        dataset_path: the folder, local or in a bucket.

    Returns:
        The path of the page.

    Raises:
        UserError: there is no complete data set.
    """
    dataset = open_dataset(dataset_path)
    card = dataset.card
    coverage, is_prepared = _coverage(card)
    charts = {
        "classes": _class_plot(dataset),
        "durations": duration_plot(_column(dataset, "duration_s")),
        "levels": level_plot(_column(dataset, "level_dbfs")),
    }
    output = page_path(dataset.path)
    values = {
        "name": PurePosixPath(dataset.path).name,
        "path": dataset.path,
        "card": card,
        "fbank": asdict(card.fbank),
        "audio": dataset.audio_fbank is not None,
        "tiles": _tiles(card, coverage),
        "splits": page.training_first(card.splits),
        "folds": fold_rows(dataset),
        "norms": norms(card.mean, card.std),
        "coverage": coverage and coverage_section(coverage),
        "is_prepared": is_prepared,
        "charts": charts,
        "file_rates": file_rates(dataset),
        "rejects": reject_rows(dataset),
        "examples": _examples(dataset),
        "colours": COLOURS,
        "range": energy_range(card),
        "preparation": _preparation(dataset),
    }
    page.write_page(output, _TEMPLATE, values, charts.values())
    return output


def norms(mean: float, std: float) -> list[Section]:
    """Published mean and deviation of each data set, and this one's when normalised by them."""
    return [
        {
            "name": name,
            "mean": other_mean,
            "std": other_std,
            "mean_after": (mean - other_mean) / (2 * other_std),
            "std_after": std / (2 * other_std),
        }
        for name, (other_mean, other_std) in PUBLISHED_NORMS.items()
    ]


def prepared_coverage(coverage: Coverage, card: Card) -> Coverage | None:
    """The coverage with clips that `prepare` rejected counted as unreadable instead of found.

    Returns:
        None if the data set does not hold the clips that were counted.
    """
    splits = {}
    for name, counts in coverage.splits.items():
        entry = card.splits.get(name)
        num_clips, duration_s = (entry.num_clips, entry.duration_s) if entry else (0, 0.0)
        splits[name] = _with_rejects(counts, num_clips, duration_s)
    lost = [coverage.splits[name].found - counts.found for name, counts in splits.items()]
    if min(lost, default=0) < 0 or sum(lost) != card.rejects.num:
        return None
    duration_s = math.fsum(counts.found_s for counts in splits.values())
    num_found = {
        entry.label: sum(split.get(entry.label, 0) for split in card.class_counts.values())
        for entry in coverage.classes
    }
    return replace(
        coverage,
        splits=splits,
        total=_with_rejects(coverage.total, card.num_clips, duration_s),
        classes=tuple(replace(entry, found=num_found[entry.label]) for entry in coverage.classes),
    )


def duration_plot(durations_s: FloatArray) -> Plot:
    """Histogram of the clips' durations `[N]`, in octaves if some are far longer than most."""
    shortest_s, longest_s = float(durations_s.min()), float(durations_s.max())
    median_s = float(np.median(durations_s))
    if longest_s > 20 * median_s:
        first, last = (math.floor(math.log2(value)) for value in (shortest_s, longest_s))
        edges, every = [2.0**power for power in range(first, last + 2)], 1
    else:
        step_s = _round_step(longest_s / _MAX_BINS)
        num_bins = int(longest_s / step_s + 1e-9) + 1
        # Rounded, so that a duration that is an edge falls into the bin above it.
        edges, every = [round(step_s * number, 6) for number in range(num_bins + 1)], 5
    return _histogram(
        "durations",
        "Durations",
        f"From {shortest_s:.2f} s to {longest_s:.2f} s, median {median_s:.2f} s.",
        names=_bin_names(edges, "s"),
        counts=np.histogram(durations_s, edges)[0].tolist(),
        ticks=[(number - 0.5, f"{edge:.4g}") for number, edge in enumerate(edges)][::every],
        x_title="seconds",
    )


def level_plot(levels_dbfs: FloatArray) -> Plot | None:
    """Histogram of the clips' levels `[N]`, silence in a separate bin; None if none is known."""
    audible = levels_dbfs[np.isfinite(levels_dbfs)]
    num_silent = int(np.isneginf(levels_dbfs).sum())
    names, counts, ticks, notes = [], [], [], []
    if num_silent:
        # Set apart by a gap: silence is not next to any level.
        names, counts, ticks = ["silence", "", ""], [num_silent, 0, 0], [(0.0, "−∞")]
        notes = [f"{units.counted(num_silent, 'clip is', 'clips are')} silent throughout (−∞)."]
    if len(audible):
        # A tiny level below an edge would be divided to 0, the bin above it.
        audible = np.round(audible, 6)
        low, high = (math.floor(level / _LEVEL_STEP_DB) for level in (audible.min(), audible.max()))
        edges = [float(_LEVEL_STEP_DB * number) for number in range(low, high + 2)]
        ticks += [
            (len(counts) + number - 0.5, _signed(edge))
            for number, edge in enumerate(edges)
            if edge % 10 == 0 or len(edges) < 6
        ]
        names += _bin_names(edges, "dB")
        counts += np.histogram(audible, edges)[0].tolist()
        notes = [f"Median {units.number(float(np.median(audible)), 1)} dB.", *notes]
    num_unknown = len(levels_dbfs) - len(audible) - num_silent
    if num_unknown:
        notes.append(f"Level unknown for {units.counted(num_unknown, 'clip')}.")
    if not counts:
        return None
    return _histogram(
        "levels",
        "Levels",
        " ".join(notes),
        names=names,
        counts=counts,
        ticks=ticks,
        x_title="RMS level of the clip, dB re full scale",
    )


def reject_rows(dataset: PreparedDataset) -> list[Section]:
    """Rejected clips by stage and reason, the commonest first, with some of their ids."""
    if not dataset.card.rejects.num:
        return []
    ledger = read_ledger(dataset)
    groups = ledger.group_by(["stage", "reason"], use_threads=False)
    counted = groups.aggregate([("id", "count"), ("id", "list")]).to_pylist()
    rows = [
        {
            "stage": row["stage"],
            "reason": row["reason"],
            "num": row["id_count"],
            "ids": row["id_list"][:NUM_REJECT_EXAMPLES],
        }
        for row in counted
    ]
    return sorted(rows, key=lambda row: (-row["num"], row["stage"], row["reason"]))


def fold_rows(dataset: PreparedDataset) -> list[Section]:
    """Clips and seconds of each fold; none if the data set has no folds."""
    clips = dataset.index.select(["split", "fold", "duration_s"])
    groups = clips.group_by(["split", "fold"], use_threads=False)
    counted = groups.aggregate([("duration_s", "count"), ("duration_s", "sum")]).to_pylist()
    if not any(row["fold"] for row in counted):
        return []
    rows = [
        {
            "split": row["split"],
            "fold": row["fold"],
            "num_clips": row["duration_s_count"],
            "duration_s": row["duration_s_sum"],
        }
        for row in counted
    ]
    return sorted(rows, key=lambda row: (row["split"] != TRAIN_SPLIT, row["split"], row["fold"]))


def file_rates(dataset: PreparedDataset) -> list[Section]:
    """Clips of each sample rate of their files, the lowest first; none if unknown."""
    summary = read_summary(dataset.path)
    rate_hz = dataset.card.fbank.sample_rate_hz
    return [
        {"rate_hz": int(rate), "num": num, "is_low": int(rate) < rate_hz}
        for rate, num in (summary.file_rates if summary else {}).items()
    ]


def choose_rows(num_clips: int, fingerprint: str) -> list[int]:
    """Rows of random clips, the same for the same data set."""
    wanted = min(NUM_EXAMPLES, num_clips)
    return sorted(random.Random(fingerprint).sample(range(num_clips), wanted))


def _examples(dataset: PreparedDataset) -> Section:
    """The chosen clips, or the `reason` why none can be shown."""
    rows = choose_rows(dataset.index.num_rows, dataset.card.fingerprint)
    chosen = [dataset.index.row(row) for row in rows]
    player = Player(dataset)
    try:
        drawn = [draw(dataset.read_fbank(row), dataset.card) for row in rows]
        sounds = [player.copy(row) for row in rows]
    except (OSError, EOFError, UserError) as error:
        return {"clips": [], "reason": f"The data set's shards cannot be read: {error}"}
    clips = [
        clip | {"spectrogram": spectrogram, "sound": sound}
        for clip, spectrogram, sound in zip(chosen, drawn, sounds, strict=True)
    ]
    return {"clips": clips, "reason": ""}


def _coverage(card: Card) -> tuple[Coverage | None, bool]:
    """The coverage, if known, and whether it accounts for clips that `prepare` rejected."""
    prepared = prepared_coverage(card.coverage, card) if card.coverage else None
    return prepared or card.coverage, prepared is not None


def _with_rejects(counts: ListedClips, num_clips: int, duration_s: float) -> ListedClips:
    num_rejects = counts.found - num_clips
    return replace(
        counts,
        found=num_clips,
        unreadable=counts.unreadable + num_rejects,
        found_s=duration_s,
    )


def _class_plot(dataset: PreparedDataset) -> Plot | None:
    counts = page.training_first(dataset.card.class_counts)
    return counts_plot(counts, dataset.labels) if dataset.labels else None


def _preparation(dataset: PreparedDataset) -> Section | None:
    """How long the last run took, and the share of each stage; None if unknown."""
    summary = read_summary(dataset.path)
    if summary is None:
        return None
    total_s = math.fsum(summary.stages_s.values())
    stages = [
        (f"{name} {units.duration(seconds)}", series_colour(number), seconds / (total_s or 1.0))
        for number, (name, seconds) in enumerate(summary.stages_s.items())
    ]
    return {"run": summary, "stages": stages, "total_s": total_s}


def _tiles(card: Card, coverage: Coverage | None) -> list[Section]:
    num_rejects = card.rejects.num
    reject_share = num_rejects / (num_rejects + card.num_clips)
    splits = card.splits.values()
    num_splits = f"in {len(splits)} splits" if len(splits) > 1 else "in one split"
    tiles = [
        ("Clips", units.count(card.num_clips), num_splits),
        ("Audio", units.duration(math.fsum(split.duration_s for split in splits)), ""),
        ("Classes", units.count(len(card.labels)), ""),
        ("Size", units.size(sum(tar.size_bytes for tar in card.shards)), ""),
        ("Rejected", units.count(num_rejects), f"{units.percent(reject_share)} of the clips"),
    ]
    if coverage:
        whole = f"of {units.counted(coverage.total.listed, 'listed clip')}"
        tiles.append(("Coverage", units.percent(coverage.total.share), whole))
    return [
        {"label": label, "value": value, "details": [detail] if detail else []}
        for label, value, detail in tiles
    ]


def _column(dataset: PreparedDataset, name: str) -> FloatArray:
    """Numbers `[N]` of a column of the index."""
    numbers: FloatArray = dataset.index[name].to_numpy().astype(np.float64)
    return numbers


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, ... times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))


def _bin_names(edges: Sequence[float], unit: str) -> list[str]:
    return [f"{_signed(low)} to {_signed(high)} {unit}" for low, high in pairwise(edges)]


def _signed(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _histogram(
    key: str,
    title: str,
    caption: str,
    *,
    names: Sequence[str],
    counts: Sequence[int],
    ticks: Sequence[tuple[float, str]],
    x_title: str,
) -> Plot:
    """Bars at x = 0, 1, ...; `ticks` are positions on that axis and their texts."""
    present = [count for count in counts if count]
    # Otherwise a bin that dwarfs the others would hide them.
    is_log = max(present) > 100 * statistics.median(present)
    y_axis: Section = {"title": {"text": "clips", "standoff": 8}, "automargin": True}
    if is_log:
        y_axis |= {"type": "log", "dtick": 1, "range": [-0.3, math.log10(max(present)) + 0.1]}
    else:
        y_axis |= {"rangemode": "tozero", "nticks": min(6, max(present) + 1)}
    bars = {
        "type": "bar",
        "x": list(range(len(counts))),
        "y": [count or None for count in counts],
        "marker": {"color": series_colour(0)},
        "customdata": list(names),
        "hovertemplate": "%{customdata}<br>%{y:,} clips<extra></extra>",
    }
    # Room for twelve bars, in the middle: one or two alone would be drawn as wide as the page.
    spare = max(0, 12 - len(counts)) / 2
    layout = {
        "height": _HEIGHT_PX,
        "bargap": 0.08,
        "xaxis": {
            "title": {"text": x_title, "standoff": 8},
            "tickmode": "array",
            "tickvals": [rounded(position) for position, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "tickangle": 0,
            "range": [-0.7 - spare, len(counts) - 0.3 + spare],
            "showgrid": False,
            "zeroline": False,
        },
        "yaxis": y_axis | {"zeroline": False},
        "margin": {"l": 10, "r": 12, "t": 8, "b": 44},
    }
    return Plot(
        key=key,
        title=title,
        caption=caption + (" Logarithmic scale." if is_log else ""),
        summary=f"Histogram. {caption}",
        figure={"data": [bars], "layout": layout},
        height_px=_HEIGHT_PX,
    )
