"""Progress of a long step: a bar in a terminal, else a line now and then.

Lines are text for people, or JSON for machines.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from pipeline.terminal.log import is_quiet

LINE_EVERY_S = 10.0
"""How often progress is written to a log."""

_NO_FIGURES: Mapping[str, float] = {}


class ProgressBar:
    """Shows how much of `total` is done, in the unit of the title. Writes to standard error."""

    def __init__(self, title: str, total: int, *, json_lines: bool = False) -> None:
        self._title = title
        self._total = total
        self._json_lines = json_lines
        self._done = 0
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = Progress(
            *_columns(console.width),
            console=console,
            disable=json_lines or is_quiet() or not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total, notes=())

    def set_total(self, total: int) -> None:
        """Correct the total."""
        self._total = total
        self._bar.update(self._task, total=total)

    def update(
        self, done: int, notes: Sequence[str] = (), figures: Mapping[str, float] = _NO_FIGURES
    ) -> None:
        """Set how much is done; as many notes, or else figures, as fit follow the bar."""
        self._done = done
        notes = notes or [f"{value:,.0f} {name}" for name, value in figures.items()]
        note = ", ".join(notes)
        self._bar.update(self._task, completed=done, notes=notes)
        now = time.monotonic()
        if self._bar.disable and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._line(note, figures)

    def _line(self, note: str, figures: Mapping[str, float]) -> None:
        if is_quiet():
            return
        line = f"{self._title}: {self._done}/{self._total} {note}"
        if self._json_lines:
            line = json.dumps(
                {
                    "event": "progress",
                    "time_s": round(time.time(), 3),
                    "unit": self._title,
                    "done": self._done,
                    "total": self._total,
                    "note": note,
                    **figures,
                }
            )
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._bar.disable:
            self._line("" if error is None else "(stopped)", _NO_FIGURES)


def _columns(width: int) -> list[ProgressColumn]:
    """Bar, percentage and times, which always fit; then as many notes as do."""
    whole = Column(no_wrap=True)
    title = Column(no_wrap=True, overflow="ellipsis", max_width=max(8, width // 3))
    return [
        TextColumn("[bold]{task.description}", table_column=title),
        BarColumn(bar_width=min(40, max(8, width // 5)), table_column=whole),
        TaskProgressColumn(table_column=whole),
        TimeElapsedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        _NotesColumn(),
    ]


class _NotesColumn(ProgressColumn):
    """The notes, and how many of all are done."""

    def render(self, task: Task) -> "_Notes":
        done = f"{task.completed:,.0f}/{task.total or 0:,.0f}"
        return _Notes([*task.fields["notes"], done])


class _Notes:
    """The first of some notes: as many as fit, none of them cut."""

    def __init__(self, notes: Sequence[str]) -> None:
        self._notes = notes

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(0, cell_len(", ".join(self._notes)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = ""
        for note in self._notes:
            longer = f"{fitting}, {note}" if fitting else note
            if cell_len(longer) > options.max_width:
                break
            fitting = longer
        yield Text(fitting, no_wrap=True)


class Rate:
    """Speed of a step that finishes a few items at a time."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._num_items = 0
        self._num_bytes = 0

    def add(self, num_items: int, num_bytes: int) -> None:
        """Count finished items and their bytes."""
        self._num_items += num_items
        self._num_bytes += num_bytes

    def figures(self, num_left: int) -> dict[str, float]:
        """Items and megabytes per second since the start, and the estimated seconds left."""
        elapsed_s = max(time.monotonic() - self._start, 1e-9)
        rate = self._num_items / elapsed_s
        return {
            "clips/s": round(rate, 1),
            "MB/s": round(self._num_bytes / 1e6 / elapsed_s, 2),
            "s left": round(num_left / rate) if rate else 0,
        }
