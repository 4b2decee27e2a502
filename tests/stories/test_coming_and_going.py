"""Nodes that come and go at random moments: the same bytes and losses, and one line a loss.

The seed is printed; set `SEED` to repeat what a failed test did.
"""

import os
import random
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import Clip, from_clips
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import write_clips
from tests.support.nodes import Nodes, come_and_go, own_nodes
from tests.support.preparation import LABELS, contents
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.runs import assert_losses_of_one_worker
from tests.support.sabotage import sabotaged
from tests.support.steps import ray_folder, started
from tests.support.without_ray import prepare
from trainer.checkpoints.paths import checkpoint_paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SETTINGS = PrepareSettings(clips_per_shard=4)
NUM_CLIPS = 200
DECODE = "time.sleep(0.5)"
"""So that preparing takes as long as the nodes come and go, at little work."""
RECIPE = tiny_recipe(
    schedule={"lr": 1e-5}, train={"epochs": 2000, "log_every_steps": 4, "checkpoint_every_s": 1}
)
WRITING = 6
"""Steps: a checkpoint of so many more may be in the making when a node is lost."""
ENOUGH = 2 * WRITING + 1
"""Steps of two runs together."""
NOISE = ("Traceback", "state-dump", ".cc", "(raylet", "core_worker", "Fatal", "    @", "*** ")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return write_clips(tmp_path_factory.mktemp("audio"), NUM_CLIPS)


@pytest.fixture(scope="module")
def cluster(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("slow")
    slow = {clip.uri: DECODE for clip in clips}
    with sabotaged(folder, slow), ray_folder() as short, own_nodes(short, 2) as nodes:
        yield nodes


@pytest.fixture
def nodes(cluster: Nodes) -> Nodes:
    """Two nodes, whatever the test before has left."""
    while len(cluster) < 2:
        cluster.add()
    while len(cluster) > 2:
        cluster.kill(0)
    cluster.wait_until_up()
    return cluster


@pytest.fixture
def seed() -> int:
    number = int(os.environ.get("SEED") or random.randrange(1000))
    print(f"SEED={number}")
    return number


def assert_quiet(stderr: str) -> None:
    print(stderr)
    for sign in NOISE:
        assert sign not in stderr


def test_prepare_gives_the_same_bytes(
    nodes: Nodes, seed: int, clips: list[Clip], tmp_path: Path
) -> None:
    manifest, output = tmp_path / "m.parquet", tmp_path / "out"
    write_manifest(str(manifest), from_clips(clips, LABELS))
    command = ["prepare", str(manifest), f"--out={output}", "--clips-per-shard=4"]

    def num_built() -> int:
        return len(list((output / "_work" / "parts").glob("[!.]*.parquet")))

    num_lost = nodes.num_lost()
    with started([*command, f"--address={nodes.address}"]) as step:
        num_killed = come_and_go(nodes, num_built, seed, num_events=4, most=3)
        # A step that ends before Ray takes a node for lost rightly says nothing of it.
        nodes.wait_for(lambda: nodes.num_lost() >= num_lost + num_killed, 60)
        assert step.poll() is None, "too early"
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert_quiet(stderr)
    lines = re.findall(r"^warning: node \S+ is lost", stderr, re.MULTILINE)
    assert len(lines) == num_killed, stderr
    prepare(read_manifest(str(manifest)), tmp_path / "whole", SETTINGS)
    assert contents(str(output)) == contents(f"{tmp_path}/whole")


def test_train_has_the_losses_of_a_fixed_group(nodes: Nodes, seed: int, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    stderr = train(nodes, seed, tmp_path, [run], "train", f"--out={run}", "--workers=1:3")
    assert_lines(stderr, "run")


def test_ensemble_has_the_losses_of_undisturbed_runs(
    nodes: Nodes, seed: int, tmp_path: Path
) -> None:
    runs = [f"{tmp_path}/all/seed-{number}" for number in (1, 2)]
    command = ["ensemble", f"--out={tmp_path}/all", "--seeds", "1", "2"]
    stderr = train(nodes, seed, tmp_path, runs, *command)
    for run in ("seed-1", "seed-2"):
        assert_lines(stderr, run)


def train(nodes: Nodes, seed: int, folder: Path, runs: list[str], *command: str) -> str:
    """Train while nodes come and go, stop, and compare the losses; returns what was shown."""
    recipe = write_recipe(folder / "tiny.toml", RECIPE)
    dataset = make_prepared(f"{folder}/data").path
    name, *options = command
    options += [f"--data={dataset}", f"--address={nodes.address}"]

    def newest() -> int:
        return sum(newest_step(run) for run in runs)

    with started([name, str(recipe), *options]) as step:
        come_and_go(nodes, newest, seed, num_events=4, most=3, enough=ENOUGH)
        # All runs are under way when they are told to end, which they have a limited time for.
        before = {run: newest_step(run) for run in runs}
        nodes.wait_for(lambda: all(newest_step(run) > before[run] + WRITING for run in runs), 600)
        step.send_signal(signal.SIGTERM)
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 128 + signal.SIGTERM, stderr
    assert_quiet(stderr)
    for run in runs:
        assert_losses_of_one_worker(run, dataset, f"{run}-fixed")
    return stderr


def assert_lines(stderr: str, run: str) -> None:
    """All that is said of a run are restarts, each once, from steps that grow.

    A run may be lost before it has written a checkpoint: the nodes wait for steps of any run.
    """
    # A node that joins on the same machine sends once more what the others have sent. Some of these
    # lines Ray marks as repeated.
    lines = re.findall(rf"warning: {run}: (.*?)(?:\x1b\[32m \[repeated .*)?$", stderr, re.MULTILINE)
    lines = list(dict.fromkeys(lines))
    print(*lines, sep="\n")
    reasons = r"node \S+ is lost with|the workers have left|worker \d+ failed"
    place = r"(?:step (\d+)|the start)"
    steps = [re.fullmatch(rf"(?:{reasons}).*; restarting from {place}", line) for line in lines]
    assert all(steps), lines
    numbers = [int(step[1] or 0) for step in steps if step]
    assert sorted(set(numbers)) == numbers, lines


def newest_step(run: str) -> int:
    return max((int(path[-11:-3]) for path in checkpoint_paths(run)), default=0)
