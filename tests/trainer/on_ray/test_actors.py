"""Which failures of workers are worth a restart."""

import logging
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import PassingError, UserError
from tests.support.errors import assert_names, refused
from trainer.on_ray.actors import Failures


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
