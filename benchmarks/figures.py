"""Figures that benchmarks measure: recorded one by one, printed as one table at the end.

A benchmark calls `record`, which appends a line of JSON to the file that FIGURES names, so that
figures measured before a benchmark was killed are kept. Then

    python benchmarks/figures.py show build/gpu/figures.jsonl --json build/gpu/figures.json

prints the table and writes the same as one JSON document, and

    python benchmarks/figures.py add machine status "ran out of time"

records one from a shell script.
"""

import argparse
import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

VARIABLE = "FIGURES"
"""Environment variable with the file to append figures to; unset or empty: none are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A measured value, or the reason why there is none."""

    part: str
    """The benchmark, or the part of one, that measured it."""
    name: str
    """What was measured; unique within its part."""
    value: int | float | str
    unit: str = ""
    aim: float | None = None
    """The least value to reach; None without an aim."""

    def is_reached(self) -> bool | None:
        """Whether the aim is reached; None without an aim or without a number."""
        if self.aim is None or isinstance(self.value, str):
            return None
        return self.value >= self.aim

    def line(self, name_width: int) -> str:
        """One line of columns: the name, the value with its unit, and the aim."""
        words = [f"{self.name:{name_width}}", f"{_shown(self.value):>12}", self.unit]
        if self.aim is not None:
            verdict = {True: "reached", False: "NOT REACHED", None: "not measured"}
            words.append(f"(aim: {_shown(self.aim)}, {verdict[self.is_reached()]})")
        return " ".join(words).rstrip()

    def __str__(self) -> str:
        return self.line(48)


def record(
    part: str, name: str, value: int | float | str, unit: str = "", *, aim: float | None = None
) -> Figure:
    """Append a figure to the file that FIGURES names, if set; returns it, to print."""
    figure = Figure(part=part, name=name, value=value, unit=unit, aim=aim)
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a") as file:
            file.write(json.dumps(asdict(figure), allow_nan=False) + "\n")
    return figure


def read(path: Path) -> list[Figure]:
    """The figures of a file, in the order in which they were recorded."""
    return [Figure(**json.loads(line)) for line in path.read_text().splitlines()]


def table(figures: list[Figure]) -> str:
    """All figures in columns, with a line before each part."""
    name_width = max((len(figure.name) for figure in figures), default=0) + 2
    lines: list[str] = []
    part = None
    for figure in figures:
        if figure.part != part:
            lines += ["", figure.part]
            part = figure.part
        lines.append(f"  {figure.line(name_width)}")
    return "\n".join(lines[1:])


def _shown(value: int | float | str) -> str:
    """Four significant digits, without an exponent for numbers of a readable size."""
    if isinstance(value, int | str):
        return str(value)
    if value and math.isfinite(value) and 1e-3 <= abs(value) < 1e7:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}"
    return f"{value:.4g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    show = commands.add_parser("show", help="print a file of figures as a table")
    show.add_argument("figures", type=Path)
    show.add_argument("--json", type=Path, help="also write them to this file, as one document")
    show.set_defaults(run=_show)
    add = commands.add_parser("add", help="record a figure that is a text")
    for name in ("part", "name", "value"):
        add.add_argument(name)
    add.set_defaults(run=lambda given: record(given.part, given.name, given.value))
    arguments = parser.parse_args()
    arguments.run(arguments)


def _show(arguments: argparse.Namespace) -> None:
    figures = read(arguments.figures) if arguments.figures.exists() else []
    print(table(figures))
    if arguments.json:
        arguments.json.write_text(
            json.dumps([asdict(figure) for figure in figures], indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
