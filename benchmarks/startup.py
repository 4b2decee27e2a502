"""Seconds that a person waits for a step of a local Ray: each row with its goal.

In: nothing but the built-in data set of `make demo`, which is made first. Steps: run each command
a few times, in a new process each. Out: a table of medians, and figures (see `figures`).

    python benchmarks/startup.py
    python benchmarks/startup.py --before ../earlier    # by turns with another checkout
    python benchmarks/startup.py --load 2 --only epoch mistyped report

Rows that end with a step or a file count until the bar shows it or it is written, and the others
until the command ends. The goals are for 2 idle cores; files are in the page cache after the first
time.
"""

import argparse
import os
import pty
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from figures import record

PART = "startup"
LIMIT_S = 300.0
"""Longest time of a command; one that takes longer ends the benchmark."""
_NUM_CLIPS = 100
_STEP = re.compile(rb"steps.*[^\d/][1-9]\d*/\d+")
"""The bar after the first step."""
_BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Ends with its parent, whatever ends that."""


def program(checkout: Path) -> Sequence[str]:
    """The command line of a checkout, all of whose processes import its own files."""
    place = "env", f"--chdir={checkout}", f"PYTHONPATH={checkout}"
    return *place, sys.executable, str(checkout / "ray_job.py")


PROGRAM = program(Path(__file__).parents[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a person waits for."""

    name: str
    goal_s: float | None = None
    wait: Callable[[Sequence[str]], float]
    """Runs the command of a program; returns the seconds waited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """The built-in data set, prepared, and a run of it."""

    folder: Path

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def make(self) -> None:
        """All files that the rows need."""
        audio, clips = self.folder / "audio", self.path("clips.parquet")
        done(sys.executable, "-m", "pipeline.manifest.synthetic", str(audio))
        table = (audio / "clips.csv").read_text().splitlines(keepends=True)
        (audio / "few.csv").write_text("".join(table[: 1 + _NUM_CLIPS]))
        for source, manifest in (("clips.csv", clips), ("few.csv", self.path("few.parquet"))):
            done(*PROGRAM, "manifest", str(audio / source), "--out", manifest, "--quiet")
        done(*PROGRAM, "prepare", clips, "--out", self.path("data"), "--quiet")
        done(*PROGRAM, *self.train("run"), "--set", "train.epochs=1", "--quiet")

    def train(self, name: str) -> Sequence[str]:
        """The step that trains a run of this name."""
        data = self.path("data")
        return "train", "demo", "--data", data, "--out", self.path(name), "--no-gpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="runs of each command")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of rows")
    parser.add_argument("--load", type=int, default=0, help="busy processes beside the commands")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args()
    # Ended by another program, it still ends what it has started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sides = {"now": PROGRAM}
    if arguments.before:
        sides = {"before": program(arguments.before.resolve()), **sides}
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        demo = Demo(folder=Path(folder))
        demo.make()
        with busy(arguments.load):
            print(
                f"{os.cpu_count()} CPUs, {arguments.load} busy processes beside, "
                f"load average {load()}",
                flush=True,
            )
            print(f"{'':48}{'median s':>9}{'goal s':>8}  each; load average", flush=True)
            for row in rows(demo):
                if not arguments.only or any(word in row.name for word in arguments.only):
                    show(row, sides, arguments.times)


@contextmanager
def busy(num: int) -> Iterator[None]:
    """So many processes that each want a CPU, for the length of a block."""
    processes = [subprocess.Popen((sys.executable, "-c", _BUSY)) for _ in range(num)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rows(demo: Demo) -> list[Row]:
    run, predictions = demo.path("run"), demo.folder / "run" / "predictions" / "eval.parquet"
    refused = "train", "esc50", "--data", "data"
    prepare = "prepare", demo.path("few.parquet"), "--quiet", "--out"
    evaluate = "evaluate", run, "--no-gpu", "--quiet"

    def new_run() -> Sequence[str]:
        return demo.train(f"run-{time.time_ns()}")

    def new_data() -> str:
        return demo.path(f"data-{time.time_ns()}")

    return [
        Row(name="--help", goal_s=0.3, wait=lambda program: done(*program, "--help")),
        Row(
            name="a refused argument",
            goal_s=0.3,
            wait=lambda program: done(*program, *refused, status=2),
        ),
        Row(
            name="a mistyped key",
            wait=lambda program: done(*program, *new_run(), "--set", "train.epoch=1", status=1),
        ),
        Row(
            name="a mistyped backbone",
            wait=lambda program: done(
                *program, *new_run(), "--set", "model.backbone=deit_tiny", status=1
            ),
        ),
        Row(name="report", goal_s=3.0, wait=lambda program: done(*program, "report", run)),
        Row(
            name="evaluate, to its predictions",
            goal_s=10.0,
            wait=lambda program: until_file(predictions, *program, *evaluate),
        ),
        Row(
            name="train, to the first step shown",
            goal_s=10.0,
            wait=lambda program: until_step(*program, *new_run()),
        ),
        Row(
            name="train of one epoch",
            wait=lambda program: done(*program, *new_run(), "--set", "train.epochs=1"),
        ),
        Row(
            name=f"prepare of {_NUM_CLIPS} clips",
            goal_s=12.0,
            wait=lambda program: done(*program, *prepare, new_data()),
        ),
    ]


def show(row: Row, sides: Mapping[str, Sequence[str]], times: int) -> None:
    """Measure a row by turns of the sides, print it and record the medians."""
    waited: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(times):
        for side, program in sides.items():
            waited[side].append(row.wait(program))
    if row.goal_s is not None:
        record(PART, f"{row.name}: goal, at most", row.goal_s, "s")
    goal = "" if row.goal_s is None else f"{row.goal_s:.1f}"
    for side, seconds in waited.items():
        name = f"{row.name}, {side}" if len(sides) > 1 else row.name
        median_s = statistics.median(seconds)
        record(PART, name, median_s, "s")
        each = " ".join(f"{value:.2f}" for value in seconds)
        print(f"{name:48}{median_s:9.2f}{goal:>8}  {each}; {load()}", flush=True)


def done(*command: str, status: int = 0) -> float:
    """Seconds that a command takes to its end, which must be of this status."""
    start_s = time.perf_counter()
    with running(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(timeout=LIMIT_S)
    if process.returncode != status:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{errors.decode()}")
    return time.perf_counter() - start_s


@contextmanager
def running(*command: str, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A command, and its end: if the block fails, it has to stop, and its Ray with it."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        except BaseException:
            process.terminate()
            raise


def until_file(path: Path, *command: str) -> float:
    """Seconds until a command has written a file; waits for its end."""
    path.unlink(missing_ok=True)
    start_s = time.perf_counter()
    with running(*command, stdout=subprocess.DEVNULL) as process:
        while not path.exists():
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended without {path}")
            time.sleep(0.01)
        return time.perf_counter() - start_s


def until_step(*command: str) -> float:
    """Seconds until the bar of `train` shows a step; then stops it, and waits for its end."""
    terminal, end = pty.openpty()
    start_s = time.perf_counter()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with running(*command, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        shown, waited_s = b"", 0.0
        try:
            while more := os.read(terminal, 65536):
                shown += more
                if not waited_s and _STEP.search(shown):
                    waited_s = time.perf_counter() - start_s
                    process.send_signal(signal.SIGTERM)
        except OSError:  # how the other end of a terminal tells that it is closed
            pass
    os.close(terminal)
    if not waited_s:
        raise SystemExit(f"{' '.join(command)}: no step\n{shown.decode(errors='replace')}")
    return waited_s


def load() -> str:
    """The load average of the last minute."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
