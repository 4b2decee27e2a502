"""What a lost node costs: seconds from `kill -9` of a node to work as before, and the screen.

In: nothing; noise is written as audio. Steps, each on a new cluster of nodes with one CPU on this
machine: `prepare`, `train` with `--workers 1:2` and with two workers and a spare node, and an
`ensemble` of two runs with a spare node. In the middle of each, the raylet and all workers of a
node that works are killed. Out: when each part of the way back was over, and all lines of the
screen with their times, negative before the kill.

    .venv/bin/python benchmarks/lost_node.py

Parts: the step says so; Ray takes the node for dead; there are new workers; work as before, which
is a checkpoint of a step that was not done before, of every run, or the shards that were in work.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from figures import record
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.cluster_utils import Cluster

PROJECT = Path(__file__).resolve().parent.parent
NUM_NODES = {"prepare": 2, "train 1:2": 2, "train 2": 3, "ensemble": 3}
"""The steps, and the nodes of each beside the head, which has no CPUs."""
RATE_HZ = 16_000
NUM_FILES, NUM_CLIPS, NUM_FEW, CLIPS_PER_SHARD = 100, 2_000, 64, 50
STEPS_BEFORE, SHARDS_BEFORE = 20, 6
"""What is done of each run, or of the data set, when the node is killed."""
LONGEST_S = 400.0
END_S = 100.0
DEAD, LAST = "Ray takes the node for dead", "work as before"
RECIPE = """
[model]
backbone = "deit_tiny_distilled_patch16_224.fb_in1k"
pretrained = false
depth = 1
patch_frequency = 64
patch_time = 16
stride_frequency = 64
stride_time = 16
num_frames = 64
[augment]
frequency_mask = 8
time_mask = 8
mixup_share = 0.0
[train]
epochs = 100000
batch_size = 8
checkpoint_every_s = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", nargs="+", choices=NUM_NODES, default=list(NUM_NODES))
    arguments = parser.parse_args()
    os.environ["RAY_AUTH_MODE"] = "disabled"
    # Short, as paths of sockets are limited in length.
    with tempfile.TemporaryDirectory("", "ray-", "/tmp", ignore_cleanup_errors=True) as folder:
        os.environ["RAY_TMPDIR"] = folder
        make_data(Path(folder))
        for step in arguments.steps:
            measure(step, Path(folder))


def make_data(folder: Path) -> None:
    """Manifests of noise, a recipe, and a small prepared data set to train on."""
    (folder / "audio").mkdir()
    rng = np.random.default_rng(0)
    paths = [f"audio/{number:04d}.wav" for number in range(NUM_CLIPS)]
    for path in paths[:NUM_FILES]:
        soundfile.write(folder / path, rng.normal(0, 0.1, 10 * RATE_HZ), RATE_HZ)
    for number, path in enumerate(paths[NUM_FILES:]):
        (folder / path).symlink_to(folder / paths[number % NUM_FILES])
    few = [
        f"{path},{'ab'[number // 2 % 2]},{('train', 'eval')[number % 2]}"
        for number, path in enumerate(paths[:NUM_FEW])
    ]
    (folder / "few.csv").write_text("\n".join(["path,labels,split", *few]))
    (folder / "all.csv").write_text("\n".join(["path,labels", *(f"{path},a" for path in paths)]))
    (folder / "recipe.toml").write_text(RECIPE)
    for name in ("few", "all"):
        run("manifest", f"{folder}/{name}.csv", "--out", f"{folder}/{name}.parquet")
    run("prepare", f"{folder}/few.parquet", "--out", f"{folder}/data", "--address", "local")


def run(*command: str) -> None:
    subprocess.run(
        [sys.executable, str(PROJECT / "ray_job.py"), *command], check=True, capture_output=True
    )


def measure(step: str, folder: Path) -> None:
    """Run a step, kill a node in the middle of it, and print what came when."""
    print(f"{step}, load average {os.getloadavg()[0]:.1f}", flush=True)
    out = folder / re.sub(r"\W", "-", step)
    training = [str(folder / "recipe.toml"), "--data", str(folder / "data"), "--out", str(out)]
    size = ["--clips-per-shard", str(CLIPS_PER_SHARD)]
    name, *workers = step.split()
    more = {
        "prepare": [str(folder / "all.parquet"), "--out", str(out), *size],
        "train": [*training, "--workers", *workers],
        "ensemble": [*training, "--seeds", "1", "2"],
    }
    runs = [out] if name == "train" else [out / "seed-1", out / "seed-2"]
    with (
        cluster(NUM_NODES[step]) as nodes,
        screen([name, *more[name], "--address", nodes.address]) as seen,
    ):
        if name == "prepare":
            lose_shards(nodes, seen, out)
        else:
            lose_workers(nodes, seen, runs)
        seen.wait(lambda: DEAD in seen.parts, may_end=True)
    for part, value in sorted(seen.parts.items(), key=lambda item: item[1]):
        print(record(f"lost_node, {step}", part, round(value, 1), "s"))
    for at_s, line in seen.lines:
        print(f"    {at_s:7.1f} s  {line}")


def lose_workers(nodes: "Nodes", seen: "Screen", runs: Sequence[Path]) -> None:
    seen.wait(lambda: all(newest(run) >= STEPS_BEFORE for run in runs))
    nodes.kill(next(node for node in nodes.others if nodes.workers(node)))
    old = {process for node in nodes.others for process in nodes.workers(node)}
    done = {run: newest(run) for run in runs}
    seen.count_from_now(nodes)
    seen.wait(lambda: any(set(nodes.workers(node)) - old for node in nodes.others))
    seen.note("there are new workers")
    # The workers that are left may write a checkpoint as they leave.
    seen.wait(lambda: all(newest(run) > done[run] + 1 for run in runs))
    seen.note(LAST)


def lose_shards(nodes: "Nodes", seen: "Screen", out: Path) -> None:
    def built() -> set[int]:
        parts = (out / "_work" / "parts").glob("[!.]*.parquet")
        return {int(path.stem.rpartition("-")[2]) for path in parts}

    seen.wait(lambda: len(built()) >= SHARDS_BEFORE)
    nodes.kill(nodes.others[0])
    seen.count_from_now(nodes)
    in_work = set(range(max(built()) + 2))
    seen.wait(lambda: built() >= in_work)
    seen.note(LAST)


def newest(run: Path) -> int:
    """The last step of which there is a checkpoint."""
    return max((int(path.stem[5:]) for path in run.glob("checkpoints/step-*.pt")), default=0)


class Nodes:
    """A cluster on this machine."""

    def __init__(self, num: int) -> None:
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.others: list[Any] = [self._cluster.add_node(num_cpus=1) for _ in range(num)]
        self.address: str = self._cluster.address
        self._gcs = GcsClient(address=self.address)

    def num_alive(self) -> int:
        """Nodes that Ray takes for alive, beside the head."""
        infos = self._gcs.get_all_node_info().values()
        return len([info for info in infos if info.state == 0]) - 1

    def workers(self, node: Any) -> list[int]:
        """Processes of a node that train."""
        return [pid for pid in children(raylet(node)) if title(pid).startswith("ray::RayTrainW")]

    def kill(self, node: Any) -> None:
        self.others.remove(node)
        for process in [raylet(node), *children(raylet(node))]:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def cluster(num: int) -> Iterator[Nodes]:
    nodes = Nodes(num)
    try:
        yield nodes
    finally:
        nodes.close()


def raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def title(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""


@dataclass
class Screen:
    """A step, and what it shows."""

    process: "subprocess.Popen[str]"
    kill_s: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)

    def read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append((time.monotonic(), line.rstrip()))
            if self.kill_s and "warning: " in line and not self.parts.get("the step says so"):
                self.note("the step says so")

    def count_from_now(self, nodes: Nodes) -> None:
        """The node has just been killed."""
        self.kill_s = time.monotonic()

        def look() -> None:
            while nodes.num_alive() > len(nodes.others):
                time.sleep(0.2)
            self.note(DEAD)

        threading.Thread(target=look, daemon=True).start()

    def note(self, part: str) -> None:
        self.parts[part] = time.monotonic() - self.kill_s

    def wait(self, is_so: Callable[[], bool], *, may_end: bool = False) -> None:
        deadline = time.monotonic() + LONGEST_S
        while not is_so():
            has_ended = self.process.poll() is not None and not may_end
            if has_ended or time.monotonic() > deadline:
                print("\n".join(line for _, line in self.lines))
                raise SystemExit("the step has ended, or takes too long")
            time.sleep(0.05)


@contextmanager
def screen(command: Sequence[str]) -> Iterator[Screen]:
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "ray_job.py"), *command],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    seen = Screen(process)
    reader = threading.Thread(target=seen.read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(END_S)
        seen.lines = [(at_s - seen.kill_s, line) for at_s, line in seen.lines]


if __name__ == "__main__":
    main()
