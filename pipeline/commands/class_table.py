"""The clips of each class, by split or fold, as a table for the terminal."""

import numpy as np
from rich.table import Table

from pipeline.manifest.class_counts import ClassCounts, Counts

ROWS = 20
"""Classes that are shown: if there are more, the largest and the smallest."""
_PARTS = 10
"""Most splits or folds that have a column of their own."""


def class_table(counts: ClassCounts, part: str) -> Table:
    """Clips of each class, the largest first.

    Args:
        counts: by split or fold.
        part: a word before the names of splits or folds; empty for none.
    """
    has_parts = 1 < len(counts.parts) <= _PARTS
    numbers = counts.counts if has_parts else np.empty((len(counts.labels), 0), np.int64)
    table = Table()
    table.add_column("class", style="bold", overflow="fold")
    for name in (*counts.parts[: numbers.shape[1]], "all"):
        title = name if name == "all" else f"{part} {name}".strip()
        table.add_column(title, justify="right")
    order = np.argsort(-counts.totals, kind="stable")
    shown = order if len(order) <= ROWS else order[: ROWS // 2]
    for index in shown:
        table.add_row(counts.labels[index], *_cells(numbers[index], counts.totals[index]))
    if len(order) > ROWS:
        between, last = order[ROWS // 2 : -ROWS // 2], order[-ROWS // 2 :]
        sums = _cells(numbers[between].sum(axis=0), counts.totals[between].sum())
        table.add_section()
        table.add_row(f"{len(between):,} more", *sums, style="italic")
        table.add_section()
        for index in last:
            table.add_row(counts.labels[index], *_cells(numbers[index], counts.totals[index]))
    return table


def _cells(of_parts: Counts, total: np.int64) -> list[str]:
    return [f"{number:,}" for number in (*of_parts, total)]
