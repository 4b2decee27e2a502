"""Clusters whose head has no CPUs and whose nodes are not there yet: steps ask for them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import from_clips
from tests.support.audio import write_clips
from tests.support.autoscaling import NodeType, autoscaling_cluster
from tests.support.nodes import wait_for
from tests.support.preparation import LABELS
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.steps import PROJECT, own_lines, ray_folder
from trainer.training.loop import train
from trainer.training.world import World

pytestmark = pytest.mark.slow

CPU_NODES = NodeType(cpus=1, max_num=2)
GPU_NODES = NodeType(cpus=1, gpus=1, max_num=2)
NODES = """
import json, sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR")
print(json.dumps(sorted(n["Resources"].get("GPU", 0) for n in ray.nodes() if n["Alive"])))
"""
"""Prints the GPUs of each live node."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    with (
        ray_folder() as folder,
        autoscaling_cluster(folder, {"cpu": CPU_NODES, "gpu": GPU_NODES}) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A recipe and a data set to train on, as arguments."""
    folder = tmp_path_factory.mktemp("training")
    recipe = write_recipe(folder / "tiny.toml", tiny_recipe(train={"epochs": 1}))
    return [str(recipe), "--data", make_prepared(str(folder / "data")).path]


def run(address: str, *command: str) -> tuple[int, list[str]]:
    """Run a step on the cluster; its status, and its own notes and errors."""
    done = subprocess.run(
        [sys.executable, str(PROJECT / "ray_job.py"), *command, "--address", address],
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, own_lines(done.stderr)


def live_gpus(address: str) -> str:
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", NODES, address]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    return done.stdout.strip()


def test_prepare_waits_for_nodes_without_gpus(cluster: str, tmp_path: Path) -> None:
    manifest, output = tmp_path / "m.parquet", tmp_path / "out"
    write_manifest(str(manifest), from_clips(write_clips(tmp_path / "audio", 16), LABELS))
    size = ["--clips-per-shard", "4"]
    status, lines = run(cluster, "prepare", str(manifest), "--out", str(output), *size)
    assert status == 0, lines
    assert any("waiting for" in line and "0 of 1" in line for line in lines)
    assert len(list((output / "shards").glob("*.tar"))) == 4
    assert set(live_gpus(cluster)) <= set("[0, .]")


def test_training_waits_for_gpus_that_nobody_named(
    cluster: str, command: list[str], tmp_path: Path
) -> None:
    refused = run(cluster, "train", *command, "--out", str(tmp_path / "no"), "--workers", "3")
    assert refused[0] == 1
    assert "--no-gpu" in refused[1][-1]
    assert "gpu (1 CPU, 1 GPU)" in refused[1][-1]
    runs = ["--out", str(tmp_path / "runs"), "--seeds", "1", "2"]
    # Long enough that the second run asks while the first has the only GPU.
    status, lines = run(cluster, "ensemble", *command, *runs, "--set", "train.epochs=100")
    assert status == 0, lines
    assert any("no GPU is there yet" in line for line in lines)
    # Both runs had a GPU: one was waited for, the other came when its run asked.
    wait_for(lambda: live_gpus(cluster).count("1.0") == 2)


def test_first_autoscaler_starts_the_nodes_of_all_workers(
    command: list[str], tmp_path: Path
) -> None:
    recipe = tiny_recipe(train={"epochs": 1})
    train(recipe, open_dataset(command[-1]), str(tmp_path / "trained"), world=World())
    with (
        ray_folder() as folder,
        autoscaling_cluster(folder, {"gpu": GPU_NODES}, is_v2=False) as address,
    ):
        status, lines = run(address, "evaluate", str(tmp_path / "trained"), "--split", "train")
        assert status == 0, lines
        assert any("waiting for 1 worker with 1 CPU and 1 GPU" in line for line in lines)
        assert "1.0" in live_gpus(address)
        status, lines = run(
            address, "train", *command, "--out", str(tmp_path / "run"), "--workers", "2"
        )
        assert status == 0, lines
        assert any("waiting for 2 workers" in line for line in lines)


def test_nodes_that_do_not_come_are_given_up(command: list[str], tmp_path: Path) -> None:
    broken = NodeType(cpus=1, gpus=1, is_broken=True)
    with ray_folder() as folder, autoscaling_cluster(folder, {"gpu": broken}) as address:
        status, lines = run(
            address, "train", *command, "--out", str(tmp_path / "run"), "--wait-for-nodes", "6"
        )
    assert status == 1
    for part in ("1 worker", "0 of 1", "1 node", "--wait-for-nodes"):
        assert part in lines[-1]
