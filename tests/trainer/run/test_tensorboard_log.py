"""TensorBoard's curves of a run, also after kills and restarts."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.summary.writer import event_file_writer

from pipeline import storage
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import assert_events_match_history, read_events
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.run.tensorboard_log import TensorBoardLog
from trainer.training.loop import train
from trainer.training.world import World


def stopping(steps: list[int]) -> Callable[[RunProgress], None]:
    def report(progress: RunProgress) -> None:
        if steps and progress.step == steps[0]:
            steps.pop(0)
            raise KeyboardInterrupt

    return report


@pytest.fixture
def a_clock_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at TensorBoard's clock is a second later.

    It reads files in the order of their names, which begin with the second they are of.
    """
    seconds = count(1_000_000_000)
    clock = SimpleNamespace(time=lambda: float(next(seconds)))
    monkeypatch.setattr(event_file_writer, "time", clock)


@pytest.mark.usefixtures("a_clock_of_seconds")
def test_curves_are_complete_after_restarts(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No point is missing or repeated, although steps were."""
    dataset = make_prepared(str(tmp_path_factory.mktemp("data")))
    recipe = tiny_recipe(train={"log_every_steps": 1, "epochs": 2, "checkpoint_every_s": 0.01})
    steps = [2, 5, 6, 9]
    report = stopping(steps)
    while steps:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, dataset, str(tmp_path), world=World(), report=report)
    train(recipe, dataset, str(tmp_path), world=World())
    history = read_history(str(tmp_path))
    assert [point.step for point in history.steps] == list(range(1, 13))
    assert_events_match_history(tmp_path)


@pytest.mark.usefixtures("a_clock_of_seconds")
def test_curves_of_a_killed_process_reach_its_checkpoint(tmp_path: Path) -> None:
    """Without `close`, as after `kill -9`: a checkpoint's points were flushed before it."""
    killed = TensorBoardLog(str(tmp_path), 0)
    killed.add(1, {"train/loss": 0.5, "train/lr": None})
    killed.add(2, {"train/loss": 0.25})
    killed.flush()
    killed.add(3, {"train/loss": 7.0})
    killed.flush()
    again = TensorBoardLog(str(tmp_path), 2)
    again.add(3, {"train/loss": 0.125})
    again.close()
    assert read_events(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.5), (2, 0.25), (3, 0.125)]
    }
    killed.close()


def test_curves_are_written_for_a_run_in_a_bucket(s3: str, tmp_path: Path) -> None:
    log = TensorBoardLog(f"{s3}/runs/one", 0)
    for step in (1, 2):
        log.add(step, {"train/loss": step / 8})
        log.flush()
        for path in storage.list_files(f"{s3}/runs/one/tensorboard"):
            (tmp_path / path.rpartition("/")[2]).write_bytes(storage.read_bytes(path))
        assert len(read_events(tmp_path)["train/loss"]) == step
    log.close()
    assert read_events(tmp_path) == {"train/loss": [(1, 0.125), (2, 0.25)]}
