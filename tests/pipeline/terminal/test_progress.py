"""The progress bar fits the terminal, whatever its width: the most important parts first."""

import io
import re

import pytest
from rich.console import Console
from rich.progress import Progress

from pipeline.terminal import progress

NOTES = ["mAP 0.612", "loss 0.013", "epoch 12", "accuracy 0.500", "lr 1.0e-05", "812 clips/s"]


def shown(width: int, title: str = "steps") -> list[str]:
    """The lines of a bar that is 43 % full."""
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    bar = Progress(*progress._columns(width), console=console, get_time=lambda: 0.0)
    bar.add_task(title, total=25_000, completed=10_750, notes=NOTES)
    plain = Console(width=width, file=io.StringIO())
    plain.print(bar.get_renderable())
    assert isinstance(plain.file, io.StringIO)
    return plain.file.getvalue().splitlines()


@pytest.mark.parametrize(
    ("width", "num_notes"), [(40, 0), (60, 1), (80, 3), (100, 4), (120, 5), (200, 6)]
)
def test_bar_percentage_and_time_come_before_what_else_fits(width: int, num_notes: int) -> None:
    (line,) = shown(width)
    assert len(line) <= width
    assert re.match(r"steps ━+[╺╸]?[━ ]* 43% 0:00:00 -:--:--", line), line
    assert [note for note in NOTES if note in line] == NOTES[:num_notes]
    # No note is cut: what follows the last whole one is nothing.
    rest = line.partition("-:--:--")[2].strip()
    known = [*NOTES, "10,750/25,000"]
    assert all(part in known for part in rest.split(", ") if part)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_long_title_leaves_room_for_the_rest(width: int) -> None:
    (line,) = shown(width, "speech_commands_v0.02_and_more.tar.gz, MB")
    assert len(line) <= width
    assert "43% 0:00:00 -:--:--" in line
