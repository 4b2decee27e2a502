"""Which failures of workers are worth a restart."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from pipeline import storage
from pipeline.errors import PassingError, UserError
from tests.support.errors import assert_names, refused
from trainer.on_ray import actors
from trainer.on_ray.actors import Failures
from trainer.run.leaving import LeavingError, StoppedError


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes, of which one is dead and one silent, and a board that is not on Ray."""
    nodes = [
        {"NodeID": "a1", "NodeManagerAddress": "10.0.0.6", "Alive": True},
        {"NodeID": "b2", "NodeManagerAddress": "10.0.0.7", "Alive": False},
        {"NodeID": "c3", "NodeManagerAddress": "10.0.0.8", "Alive": True},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(actors, "silent_nodes", lambda: {"c3": "10.0.0.8"})
    monkeypatch.setattr(ray, "get", lambda answer: answer)


def fail(failures: Failures, errors: dict[int, Exception], nodes: Sequence[str] = ()) -> None:
    """Start workers on the nodes, by rank, of which some then fail."""
    workers = [SimpleNamespace(metadata=SimpleNamespace(node_id=node)) for node in nodes]
    failures.after_worker_group_start(SimpleNamespace(get_workers=lambda: workers))
    failures.after_worker_group_poll_status(SimpleNamespace(errors={}))
    failures.after_worker_group_poll_status(SimpleNamespace(errors=errors))


def test_lost_node_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000120.pt").touch()
    peers: dict[int, Exception] = {
        0: RuntimeError("Connection closed by peer"),
        1: ActorDiedError(),
        2: ActorUnavailableError("more\n" * 20, None),
    }
    fail(Failures(str(tmp_path), logging.INFO), peers, ["a1", "b2", "b2", "a1"])
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert_names(printed, tmp_path.name, "node 10.0.0.7 is", "2 of 4 workers", "step 120")


def test_node_is_named_before_ray_knows_that_it_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if only a worker elsewhere has failed as yet."""
    peers: dict[int, Exception] = {0: RuntimeError("Connection closed by peer")}
    fail(Failures(str(tmp_path), logging.INFO), peers, ["a1", "b2", "c3"])
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert_names(printed, "nodes 10.0.0.7 and 10.0.0.8 are", "2 of 3 workers", "the start")


class Stopping:
    """A `Board` that has been told to stop, called as an actor."""

    def __init__(self) -> None:
        self.is_stopping = SimpleNamespace(remote=lambda: True)


def test_workers_that_left_start_again_unless_the_step_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left: dict[int, Exception] = {0: LeavingError(7), 1: LeavingError(7, "a node goes")}
    fail(Failures(str(tmp_path), logging.INFO), left)
    assert_names(capsys.readouterr().err, "a node goes", "start")
    with refused(str(tmp_path), "stopped", remedy="again", type=StoppedError):
        fail(Failures(str(tmp_path), logging.INFO, Stopping()), left)


def test_lost_workers_restart_but_user_errors_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = Failures(str(tmp_path), logging.INFO)
    fail(failures, {1: RuntimeError("the node went\naway")})
    assert_names(capsys.readouterr().err, "worker 1", "away")
    with refused("", "no answer", type=PassingError):
        fail(failures, {0: PassingError("", "no answer")})
    with refused("", "no such shard"):
        fail(failures, {0: RuntimeError("peer lost"), 1: UserError("", "no such shard")})


def test_run_restarts_as_long_as_it_makes_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any number of lost workers, but not without a new checkpoint."""
    failures = Failures(str(tmp_path), logging.INFO)
    lost: dict[int, Exception] = {0: RuntimeError("lost")}
    lost[0].add_note("where it was")
    (tmp_path / "checkpoints").mkdir()
    for step in range(95, 105):
        (tmp_path / "checkpoints" / f"step-{step:08d}.pt").touch()
        fail(failures, lost)
    for _ in range(2):
        fail(failures, lost)
    assert "where it was" not in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="lost"):
        fail(failures, lost)
    assert capsys.readouterr().err == "error: where it was\n"


def test_silent_storage_counts_as_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def list_files(folder: str) -> list[str]:
        asked.append(folder)
        raise PassingError("", "no answer")

    monkeypatch.setattr(storage, "list_files", list_files)
    failures = Failures(str(tmp_path), logging.INFO)
    lost: dict[int, Exception] = {0: RuntimeError("lost")}
    for _ in range(3):
        fail(failures, lost)
    with pytest.raises(RuntimeError, match="lost"):
        fail(failures, lost)
    assert asked == [f"{tmp_path}/checkpoints"] * 4
