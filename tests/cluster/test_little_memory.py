"""Steps in a control group with little memory: fewer workers, or one line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import from_clips
from tests.support.audio import write_clips
from tests.support.cgroups import memory_group
from tests.support.errors import assert_error_line
from tests.support.patience import PATIENCE
from tests.support.preparation import LABELS, SETTINGS, contents
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.steps import PROJECT
from tests.support.without_ray import prepare

pytestmark = [pytest.mark.slow, pytest.mark.ray]

JOIN = """
import os, sys
with open(sys.argv[1], "w") as processes:
    processes.write(str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Enters a group and becomes a command."""

GB = 1_000_000_000


def run(limit_bytes: int, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a step whose processes have this much memory together."""
    environment = {name: value for name, value in os.environ.items() if "RAY" not in name}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= PATIENCE
    with memory_group(limit_bytes) as group:
        step = [sys.executable, str(PROJECT / "ray_job.py"), *command]
        return subprocess.run(
            [sys.executable, "-c", JOIN, str(group / "cgroup.procs"), *step],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )


def prepare_command(folder: Path) -> list[str]:
    manifest = str(folder / "m.parquet")
    write_manifest(manifest, from_clips(write_clips(folder / "audio", 40), LABELS))
    return ["prepare", manifest, f"--out={folder}/out", "--clips-per-shard=4", "--num-cpus=2"]


def train_command(folder: Path) -> list[str]:
    dataset = make_prepared(f"{folder}/data")
    recipe = write_recipe(folder / "tiny.toml", tiny_recipe(train={"epochs": 1}))
    return ["train", str(recipe), f"--data={dataset.path}", f"--out={folder}/run"]


@pytest.mark.parametrize(
    ("make_command", "limit_bytes"),
    [(prepare_command, GB), (prepare_command, 1_200_000_000), (train_command, 1_600_000_000)],
)
def test_too_little_memory_is_refused_in_one_line(
    make_command: Callable[[Path], list[str]], limit_bytes: int, tmp_path: Path
) -> None:
    done = run(limit_bytes, *make_command(tmp_path))
    assert done.returncode == 1
    assert_error_line(done.stderr, "", "GB", "memory")
    assert "Traceback" not in done.stderr
    assert "(raylet)" not in done.stdout


def test_memory_for_one_task_at_once_gives_the_same_bytes(tmp_path: Path) -> None:
    done = run(1_600_000_000, *prepare_command(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "memory for 1 tasks at once" in done.stderr
    prepare(read_manifest(f"{tmp_path}/m.parquet"), tmp_path / "whole", SETTINGS)
    assert contents(f"{tmp_path}/out") == contents(f"{tmp_path}/whole")
