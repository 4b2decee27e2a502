"""Seconds that a person waits for a step of a local Ray: each row with its goal.

In: nothing but the built-in data set of `make demo`, which is made first. Steps: run each command
a few times, in a new process each. Out: a table of medians, and figures (see `figures`).

    python benchmarks/startup.py

`train` counts until its bar shows a step, `evaluate` until its predictions are written, and the
others until they end. The goals are for 2 idle cores; files are in the page cache after the first
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from figures import record

PROGRAM = (sys.executable, str(Path(__file__).parents[1] / "ray_job.py"))
PART = "startup"
LIMIT_S = 300.0
"""Longest time of a command; one that takes longer ends the benchmark."""
_NUM_CLIPS = 100
_STEP = re.compile(rb"steps.*[^\d/][1-9]\d*/\d+")
"""The bar after the first step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """What a person waits for."""

    name: str
    goal_s: float
    wait: Callable[[], float]
    """Runs the command; returns the seconds waited."""


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
        done(*self.train("run"), "--set", "train.epochs=1", "--quiet")

    def train(self, name: str) -> Sequence[str]:
        """The command that trains a run of this name."""
        data = self.path("data")
        return *PROGRAM, "train", "demo", "--data", data, "--out", self.path(name), "--no-gpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="runs of each command")
    parser.add_argument("--only", nargs="+", default=[], help="words in the names of rows")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, load average {load()}", flush=True)
    with tempfile.TemporaryDirectory(prefix="startup-") as folder:
        demo = Demo(folder=Path(folder))
        demo.make()
        print(f"{'':40}{'median s':>9}{'goal s':>8}  each; load average", flush=True)
        for row in rows(demo):
            if not arguments.only or any(word in row.name for word in arguments.only):
                show(row, arguments.times)


def rows(demo: Demo) -> list[Row]:
    run, predictions = demo.path("run"), demo.folder / "run" / "predictions" / "eval.parquet"
    refused = *PROGRAM, "train", "esc50", "--data", "data"
    prepare = *PROGRAM, "prepare", demo.path("few.parquet"), "--quiet", "--out"
    evaluate = *PROGRAM, "evaluate", run, "--no-gpu", "--quiet"
    return [
        Row(name="--help", goal_s=0.3, wait=lambda: done(*PROGRAM, "--help")),
        Row(name="a refused argument", goal_s=0.3, wait=lambda: done(*refused, status=2)),
        Row(name="report", goal_s=3.0, wait=lambda: done(*PROGRAM, "report", run)),
        Row(
            name="evaluate, to its predictions",
            goal_s=10.0,
            wait=lambda: until_file(predictions, *evaluate),
        ),
        Row(
            name="train, to the first step shown",
            goal_s=10.0,
            wait=lambda: until_step(*demo.train(f"run-{time.time_ns()}")),
        ),
        Row(
            name=f"prepare of {_NUM_CLIPS} clips",
            goal_s=12.0,
            wait=lambda: done(*prepare, demo.path(f"data-{time.time_ns()}")),
        ),
    ]


def show(row: Row, times: int) -> None:
    """Measure a row, print it and record its median."""
    waited = [row.wait() for _ in range(times)]
    median_s = statistics.median(waited)
    record(PART, row.name, median_s, "s")
    record(PART, f"{row.name}: goal, at most", row.goal_s, "s")
    each = " ".join(f"{seconds:.2f}" for seconds in waited)
    print(f"{row.name:40}{median_s:9.2f}{row.goal_s:8.1f}  {each}; {load()}", flush=True)


def done(*command: str, status: int = 0) -> float:
    """Seconds that a command takes to its end, which must be of this status."""
    start_s = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if ended.returncode != status:
        raise SystemExit(f"{' '.join(command)}: status {ended.returncode}\n{ended.stderr}")
    return time.perf_counter() - start_s


def until_file(path: Path, *command: str) -> float:
    """Seconds until a command has written a file; waits for its end."""
    path.unlink(missing_ok=True)
    start_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not path.exists():
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended without {path}")
            time.sleep(0.01)
        return time.perf_counter() - start_s


def until_step(*command: str) -> float:
    """Seconds until the bar of `train` shows a step; then stops it, and waits for its end."""
    terminal, end = pty.openpty()
    start_s = time.perf_counter()
    with subprocess.Popen(
        command, stdout=end, stderr=end, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    ) as process:
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
