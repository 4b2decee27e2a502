"""Tags for the terminal: what was tagged, and of one recording the highest classes over time."""

from collections import defaultdict
from collections.abc import Mapping

import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from pipeline.terminal.tables import name_value_table, titled
from pipeline.terminal.units import counted, duration
from trainer.tagging.assemble import TagCard

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 48
"""Widest bar; of a longer recording, each character is the highest of several windows."""


def recording_table(recording: pa.Table, windows: pa.Table) -> Group:
    """A table of the highest classes.

    Args:
        recording: the row of the recording.
        windows: its rows.
    """
    row = recording.to_pylist()[0]
    means = dict(zip(row["mean_labels"], row["mean_scores"], strict=True))
    series = _series(windows)
    table = Table()
    table.add_column("class", style="bold", overflow="fold")
    table.add_column("highest", justify="right")
    table.add_column("mean", justify="right")
    table.add_column(f"0 to {duration(row['duration_s'])}", no_wrap=True)
    for label, score in zip(row["max_labels"], row["max_scores"], strict=True):
        mean = f"{means[label]:.3f}" if label in means else ""
        # A label may hold what Rich would take for markup.
        bar = _bar(series[label], windows.num_rows)
        table.add_row(Text(label), f"{score:.3f}", mean, bar)
    return titled(f"{row['recording']}: {counted(windows.num_rows, 'window')}", table)


def _series(windows: pa.Table) -> dict[str, dict[int, float]]:
    """Scores by class and number of the window."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    rows = zip(windows["labels"].to_pylist(), windows["scores"].to_pylist(), strict=True)
    for number, (labels, scores) in enumerate(rows):
        for label, score in zip(labels, scores, strict=True):
            series[label][number] = score
    return series


def _bar(scores: dict[int, float], num_windows: int) -> str:
    num_columns = min(num_windows, _COLUMNS)
    heights = [0.0] * num_columns
    for number, score in scores.items():
        column = number * num_columns // num_windows
        heights[column] = max(heights[column], score)
    return "".join(_BARS[round(height * (len(_BARS) - 1))] for height in heights)


def card_table(output: str, card: TagCard) -> Group:
    """What was tagged, and what was wrong with it."""
    table = name_value_table()
    table.add_row("recordings", f"{card.num_recordings:,}, {duration(card.duration_s)}")
    plan = card.plan
    lengths = f"{plan.window_s:g} s every {plan.hop_s:g} s"
    table.add_row("windows", f"{card.num_windows:,} of {lengths}")
    table.add_row("classes", f"{len(card.labels):,}")
    for reason, count in card.rejects.items():
        table.add_row("broken", f"{count:,} {reason}")
    return titled(output, table)


def low_rate_warning(rates: Mapping[int, int], sample_rate_hz: int) -> str:
    """A warning of recordings whose files have a lower sample rate than the model; empty if none.

    Args:
        rates: recordings by the rate of their files in Hz.
        sample_rate_hz: the model's.
    """
    low = {rate_hz: num for rate_hz, num in rates.items() if rate_hz < sample_rate_hz}
    if not low:
        return ""
    rates_hz = " to ".join(f"{rate_hz:,}" for rate_hz in sorted({min(low), max(low)}))
    return (
        f"{counted(sum(low.values()), 'recording is', 'recordings are')} at {rates_hz} Hz, below "
        f"the model's {sample_rate_hz:,} Hz: the upper part of what it listens to is empty there, "
        "and the scores may be worse for it"
    )
