"""Steps run as jobs of a Ray cluster, through the command line."""

import filecmp
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.errors import assert_error_line
from tests.support.patience import PATIENCE
from tests.support.ray_head import Cluster, started, submit_when_ready
from tests.support.steps import PROJECT, ray_folder


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with ray_folder() as folder, started(folder, str(PROJECT)) as (cluster, process):
        submit_when_ready(cluster, process, "--help", submission_id="first")
        yield cluster


PATIENT = """
import sys
from cluster import job_server
job_server.VERSION_TIMEOUT_S = 60.0
import ray_job
sys.exit(ray_job.main())
"""
"""The command line, with more time for a job server on a busy machine."""


def ray_job(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.run(
        [sys.executable, "-c", PATIENT, *arguments],
        cwd=PROJECT,
        env=environment | PATIENCE,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_prepare_as_a_job_writes_the_same_shards(head: Cluster, tmp_path: Path) -> None:
    sounds, manifest = str(tmp_path / "sounds"), str(tmp_path / "clips.parquet")
    synthesise = [sys.executable, "-m", "pipeline.manifest.synthetic", sounds, "--num-train", "40"]
    subprocess.run([*synthesise, "--num-eval", "20"], check=True, cwd=PROJECT)
    assert ray_job("manifest", f"{sounds}/clips.csv", "--out", manifest).returncode == 0
    here = ray_job("prepare", manifest, "--out", str(tmp_path / "here"), "--num-cpus", "2")
    assert here.returncode == 0, here.stderr

    prepare = ["prepare", manifest, "--out", str(tmp_path / "there")]
    there = ray_job("submit", "--address", head.url, "--", *prepare)

    assert there.returncode == 0, there.stdout + there.stderr
    assert "Data set" in there.stdout, "the job's log was not followed"
    names = ["card.json", "index.parquet", "rejects.parquet"]
    names += [str(path.relative_to(tmp_path / "here")) for path in tmp_path.glob("here/shards/*")]
    assert len(names) > 4
    same, *others = filecmp.cmpfiles(tmp_path / "here", tmp_path / "there", names, shallow=False)
    assert (same, others) == (names, [[], []])


@pytest.mark.slow
def test_exit_status_of_a_failed_job_is_returned(head: Cluster, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.parquet")
    failed = ray_job(
        "submit", "--address", head.url, "--", "prepare", missing, "--out", str(tmp_path / "out")
    )
    assert failed.returncode == 1
    assert_error_line(failed.stdout, missing, "`manifest`")
    assert "Traceback" not in failed.stdout + failed.stderr
    assert not (tmp_path / "out").exists()
