"""Processes of a local Ray that are killed: one line, and the same command gives the same bytes."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, WorkerCrashedError

from cluster import machine, worker_errors
from cluster.signals import one_interrupt
from pipeline.errors import UserError
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import from_clips
from pipeline.on_ray.tasks import MAX_LOST, TASK_MEMORY_BYTES, run_tasks
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import write_clips
from tests.support.errors import assert_error_line, refused
from tests.support.preparation import LABELS, contents
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.sabotage import sabotaged
from tests.support.steps import ray_folder, started
from tests.support.without_ray import prepare
from trainer.checkpoints.paths import checkpoint_paths

NO_ADDRESS = ""


def kill_process(session: int, name: str) -> None:
    """Kill a session's process with this executable, or whose title begins with the name."""
    killed = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (folder / "cmdline").read_text().split("\0")[0]
            if os.getsid(int(folder.name)) == session and (
                Path(title).name == name or title.startswith(f"ray::{name}")
            ):
                os.kill(int(folder.name), signal.SIGKILL)
                killed.append(title)
    assert killed, f"no {name}"


def kill_once(command: list[str], name: str, folder: Path, pattern: str) -> tuple[str, str, int]:
    """Run the step; kill the process once a file has appeared. Returns what it printed, and rc."""
    with ray_folder() as short, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", short)
        with started(command) as step:
            deadline = time.monotonic() + 240
            while not any(folder.glob(pattern)):
                assert step.poll() is None, step.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            kill_process(step.pid, name)
            stdout, stderr = step.communicate(timeout=600)
            return stdout, stderr, step.returncode


def assert_one_line(stdout: str, stderr: str, *values: object) -> None:
    assert_error_line(stderr, NO_ADDRESS, *values, "again")
    for sign in ("Traceback", "state-dump", ".cc:", "(raylet)", "core_worker"):
        assert sign not in stdout + stderr


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a manifest of 80 clips."""
    folder = tmp_path_factory.mktemp("clips")
    path = str(folder / "m.parquet")
    write_manifest(path, from_clips(write_clips(folder / "audio", 80), LABELS))
    return path


@pytest.fixture(scope="module")
def reference(manifest: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The data set of 40 shards, prepared without a loss."""
    folder = tmp_path_factory.mktemp("reference")
    prepare(read_manifest(manifest), folder, PrepareSettings(clips_per_shard=2))
    return contents(str(folder))


@pytest.mark.slow
@pytest.mark.parametrize(("process", "word"), [("raylet", "raylet"), ("gcs_server", "GCS")])
def test_prepare_that_loses_ray_ends_with_one_line(
    process: str, word: str, manifest: str, reference: dict[str, bytes], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ["prepare", manifest, f"--out={output}", "--address=local", "--clips-per-shard=2"]
    first = read_manifest(manifest).clips["uri"][0].as_py()
    # A task hangs, so the run cannot end before it is killed.
    with sabotaged(tmp_path, {first: "once(hang)"}):
        printed, error, status = kill_once(command, process, output, "_work/parts/*.parquet")
    assert status == 1
    assert_one_line(printed, error, word, "SIGKILL")
    with started(command) as step:
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert contents(str(output)) == reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "word"),
    [("raylet", "raylet"), ("gcs_server", "GCS"), ("TrainController", "TrainController")],
)
def test_train_that_loses_ray_ends_with_one_line(process: str, word: str, tmp_path: Path) -> None:
    dataset = make_prepared(f"{tmp_path}/data")
    recipe = tiny_recipe(train={"epochs": 300, "checkpoint_every_s": 0})
    path, run = write_recipe(tmp_path / "tiny.toml", recipe), tmp_path / "run"
    command = ["train", str(path), f"--data={dataset.path}", f"--out={run}", "--address=local"]
    printed, error, status = kill_once(command, process, run, "checkpoints/step-*.pt")
    assert status == 1
    assert_one_line(printed, error, word)
    assert checkpoint_paths(str(run))


def die(item: dict[str, Any]) -> dict[str, Any]:
    with Path(item["log"]).open("a") as log:
        log.write(".")
    os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_task_that_dies_each_time_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(Exception) as caught:  # noqa: PT011
        list(run_tasks([{"log": str(log)}], die, memory_bytes=TASK_MEMORY_BYTES))
    assert len(log.read_text()) == 1 + MAX_LOST
    cause = worker_errors.unwrap(caught.value)
    assert isinstance(cause, UserError)
    assert "again" in cause.remedy


@pytest.mark.usefixtures("session")
def test_task_without_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resources = {"CPU": 2.0, "memory": 400_000_000.0}
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": resources}])
    with refused("", "0.5 GB", "0.40 GB", remedy=True):
        run_tasks([{"log": ""}], die, memory_bytes=TASK_MEMORY_BYTES)


def interrupted_in_its_clean_up() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        raise RuntimeError("release unlocked lock")


def test_second_signal_does_not_disturb_the_clean_up() -> None:
    """A library that fails in its clean-up raises an error of its own."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught, one_interrupt():
        interrupted_in_its_clean_up()
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert signal.getsignal(signal.SIGINT) is before


def test_errors_without_a_signal_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="mine"), one_interrupt():
        raise RuntimeError("mine")


def lost_worker() -> Exception:
    """What Ray Train raises for a worker whose process is gone."""
    # Seconds to import.
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    error: Exception = WorkerHealthCheckFailedError("A health check failed.", ActorDiedError())
    return error


def test_killed_worker_is_one_line() -> None:
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    for error in (
        WorkerCrashedError(),
        ControllerError(lost_worker()),
        WorkerGroupError("one of two", {0: lost_worker()}),
    ):
        cause = worker_errors.unwrap(error)
        assert isinstance(cause, UserError)
        assert "killed" in cause.what
        assert "again" in cause.remedy
    out_of_memory = worker_errors.unwrap(OutOfMemoryError("Task was killed"))
    assert isinstance(out_of_memory, UserError)
    assert "memory" in out_of_memory.what


def test_kernel_that_killed_for_lack_of_memory_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kills = machine.memory_kills()
    monkeypatch.setattr(worker_errors, "memory_kills", lambda: kills + 1)
    cause = worker_errors.unwrap(WorkerCrashedError())
    assert isinstance(cause, UserError)
    assert "memory" in cause.what


def test_error_of_a_worker_is_not_taken_for_a_killed_one() -> None:
    """Ray ends the other workers of a group in which one failed."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    bug = WorkerGroupError("two", {0: lost_worker(), 1: ValueError("a bug")})
    assert worker_errors.unwrap(bug) is bug
    unbuilt = ActorDiedError()
    unbuilt._actor_init_failed = True
    assert worker_errors.unwrap(unbuilt) is unbuilt
