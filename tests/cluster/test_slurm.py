"""`cluster/slurm/job.sh` on a Slurm of two nodes on this machine."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support import slurm
from tests.support.apt import should_have
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.slurm import Slurm
from tests.support.steps import PROJECT
from trainer.checkpoints.paths import checkpoint_paths
from trainer.run.history import is_finished, read_history

# Three jobs start a Ray each, which takes long where others work.
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1800)]

SCRIPT = PROJECT / "cluster" / "slurm" / "job.sh"
NUM_EPOCHS = 200
JOIN_S = 600.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    if missing := slurm.missing_programs():
        reason = f"no Slurm: {', '.join(missing)} missing; sh tests/install_slurm.sh"
        if should_have("slurmctld"):
            pytest.fail(reason)
        pytest.skip(reason)
    with slurm.started(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def submit(cluster: Slurm, folder: Path, *arguments: str, gpus: int = 0) -> str:
    """Submit a job of two nodes with two CPUs each; returns its id. Its log: `folder/ID.log`."""
    options = ["--partition=test", f"--gpus-per-node={gpus}", "--cpus-per-task=2", "--time=30"]
    environment = [f"AST_RAY_PYTHON={sys.executable}", f"AST_RAY_JOIN_S={JOIN_S}"]
    command = ["sbatch", "--parsable", *options, f"--output={folder}/%j.log", str(SCRIPT)]
    return cluster.run("env", *environment, *command, *arguments, cwd=PROJECT).strip()


def train(recipe: Path, data: str, run: Path) -> list[str]:
    return ["train", str(recipe), f"--data={data}", f"--out={run}", "--workers=2", "--no-gpu"]


def wait_for_checkpoint(cluster: Slurm, job_id: str, run: Path) -> None:
    deadline = time.monotonic() + 600
    while not checkpoint_paths(str(run)):
        job = cluster.job(job_id)
        is_late = time.monotonic() > deadline
        if is_late or job["JobState"] not in {"PENDING", "RUNNING"}:
            raise AssertionError(f"{Path(job['StdOut']).read_text()}\n{cluster.logs()}")
        time.sleep(0.1)


def wait_for_restart(cluster: Slurm, job_id: str) -> None:
    deadline = time.monotonic() + 900
    while (job := cluster.job(job_id))["Restarts"] == "0":
        is_late = time.monotonic() > deadline
        if is_late or job["JobState"] in {"COMPLETED", "FAILED"}:
            raise AssertionError(f"{Path(job['StdOut']).read_text()}\n{cluster.logs()}")
        time.sleep(0.1)
    assert job["Restarts"] == "1"


def environments(job_id: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Process ids and environments of the processes of a job."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            items = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            environment = dict(item.split("=", 1) for item in items if "=" in item)
            if environment.get("SLURM_JOB_ID") == job_id:
                yield int(folder.name), environment


def assert_gone(job_id: str) -> None:
    """No process of the job is left; the script's own look after Ray ends within a second."""
    deadline = time.monotonic() + 60
    while left := [process for process, _ in environments(job_id)]:
        assert time.monotonic() < deadline, f"processes outlive their job: {left}"
        time.sleep(0.2)


def ray_folders() -> set[Path]:
    """The folders of Ray that the script makes, on all nodes."""
    return set(Path("/tmp").glob("ray.??????"))


def assert_guarded(cluster: Slurm, job_id: str, folder: Path) -> None:
    """Its Ray refuses whoever has no token, which stands in no command line and in no file."""
    log = (folder / f"{job_id}.log").read_text()
    [address] = re.findall(r"Ray at (\S+) on", log)
    command = [sys.executable, "-m", "cluster.join", address, "--num=2", "--timeout=0"]
    stranger = {**cluster.environment, "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        command, cwd=PROJECT, env=stranger, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert f"{address}: the cluster requires a token" in done.stderr
    tokens = {environment.get("RAY_AUTH_TOKEN", "") for _, environment in environments(job_id)}
    [token] = tokens - {""}
    assert len(token) == 64
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            assert token not in path.read_bytes().decode(errors="replace"), path
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run has removed it meanwhile
            assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_jobs_share_nodes_resume_and_hand_on_their_status(cluster: Slurm, tmp_path: Path) -> None:
    """In one test, as each start of Ray takes long: two at once, then one again and a failing."""
    others = ray_folders()
    data = make_prepared(f"{tmp_path}/data").path
    settings = {"epochs": NUM_EPOCHS, "log_every_steps": 1, "checkpoint_every_s": 0}
    long = write_recipe(tmp_path / "long.toml", tiny_recipe(train=settings))
    short = write_recipe(tmp_path / "short.toml", tiny_recipe(train={"epochs": 2}))
    first = submit(cluster, tmp_path, *train(long, data, tmp_path / "first"), gpus=1)
    second = submit(cluster, tmp_path, *train(short, data, tmp_path / "second"))
    wait_for_checkpoint(cluster, first, tmp_path / "first")
    assert_guarded(cluster, first, tmp_path)
    # As Slurm does by `--signal=B:TERM@60`, before the time limit.
    cluster.run("scancel", "--batch", "--signal=TERM", first)
    wait_for_restart(cluster, first)
    stopped_at = read_history(str(tmp_path / "first")).num_steps
    assert 0 < stopped_at < NUM_EPOCHS * 6
    failing = submit(cluster, tmp_path, *train(short, f"{tmp_path}/none", tmp_path / "third"))
    done = {name: cluster.wait(name, "COMPLETED", "FAILED") for name in (first, second, failing)}
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in done}
    expected = {first: "0:0", second: "0:0", failing: "1:0"}
    assert {name: job["ExitCode"] for name, job in done.items()} == expected, logs
    assert {job["NodeList"] for job in done.values()} == {"n[1-2]"}
    assert done[second]["Restarts"] == "0"
    assert done[second]["StartTime"] < done[first]["EndTime"]
    assert "2 nodes have joined, with 4 CPUs and 2 GPUs" in logs[first]
    assert "2 nodes have joined, with 4 CPUs and 0 GPUs" in logs[second]
    assert f"{tmp_path}/none" in logs[failing]
    assert "resuming; the newest checkpoint is" in logs[first]
    for run, epochs in (("first", NUM_EPOCHS), ("second", 2)):
        history = read_history(str(tmp_path / run))
        assert is_finished(str(tmp_path / run))
        assert len(history.epochs) == epochs
    steps = [point.step for point in read_history(str(tmp_path / "first")).steps]
    assert steps == list(range(1, NUM_EPOCHS * 6 + 1))
    for name in done:
        assert_gone(name)
    assert ray_folders() <= others
