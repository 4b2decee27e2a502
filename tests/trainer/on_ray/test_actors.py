"""Which failures of workers are worth a restart."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError

from pipeline import storage
from pipeline.errors import PassingError, UserError
from tests.support.errors import assert_names, refused
from trainer.on_ray.actors import Failures
from trainer.run.leaving import LeavingError, StoppedError


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes, of which one is dead, and a board that is not on Ray."""
    nodes = [
        {"NodeID": "a1", "NodeManagerAddress": "10.0.0.6", "Alive": True},
        {"NodeID": "b2", "NodeManagerAddress": "10.0.0.7", "Alive": False},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get", lambda answer: answer)


class NodeLostError(ActorDiedError):
    def __str__(self) -> str:
        return "The actor died because its node has died.\nNode Id: b2\n" + "more\n" * 20


def test_lost_node_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000120.pt").touch()
    peers: dict[int, Exception] = {
        0: RuntimeError("Connection closed by peer"),
        1: NodeLostError(),
        2: NodeLostError(),
    }
    Failures(str(tmp_path), logging.INFO).after_exception(None, peers)
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert_names(printed, "10.0.0.7", "2 of", "step 120")


class Stopping:
    """A `Board` that has been told to stop, called as an actor."""

    def __init__(self) -> None:
        self.is_stopping = SimpleNamespace(remote=lambda: True)


def test_workers_that_left_start_again_unless_the_step_is_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left: dict[int, Exception] = {0: LeavingError(7), 1: LeavingError(7, "a node goes")}
    Failures(str(tmp_path), logging.INFO).after_exception(None, left)
    assert_names(capsys.readouterr().err, "a node goes", "start")
    with refused(str(tmp_path), "stopped", remedy="again", type=StoppedError):
        Failures(str(tmp_path), logging.INFO, Stopping()).after_exception(None, left)


def test_lost_workers_restart_but_user_errors_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = Failures(str(tmp_path), logging.INFO)
    failures.after_exception(None, {1: RuntimeError("the node went\naway")})
    assert_names(capsys.readouterr().err, "worker 1", "away")
    with refused("", "no answer", type=PassingError):
        failures.after_exception(None, {0: PassingError("", "no answer")})
    with refused("", "no such shard"):
        failures.after_exception(
            None, {0: RuntimeError("peer lost"), 1: UserError("", "no such shard")}
        )


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
        failures.after_exception(None, lost)
    for _ in range(2):
        failures.after_exception(None, lost)
    assert "where it was" not in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="lost"):
        failures.after_exception(None, lost)
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
        failures.after_exception(None, lost)
    with pytest.raises(RuntimeError, match="lost"):
        failures.after_exception(None, lost)
    assert asked == [f"{tmp_path}/checkpoints"] * 4
