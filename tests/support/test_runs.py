"""A run is compared with one worker wherever it was stopped, and a wrong run is found out."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.prepared import PreparedDataset
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import assert_losses_of_one_worker, newest
from trainer.checkpoints.checkpoint import save_checkpoint
from trainer.checkpoints.progress import Progress
from trainer.run.history import write_history
from trainer.run.leaving import LeavingError
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(train={"log_every_steps": 4, "checkpoint_every_s": 1e6})
STEPS_PER_EPOCH = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def run(dataset: PreparedDataset, tmp_path: Path) -> str:
    """A run that was stopped with the checkpoint of its second epoch."""
    path = str(tmp_path / "run")
    train(RECIPE, dataset, path, world=World(), go_on=lambda result: result.epoch < 2)
    return path


def rewind(run: str, num_points: int, num_epochs: int) -> None:
    """Let the history have fewer points and epochs than the newest checkpoint."""
    progress = newest(run).progress
    steps, epochs = progress.steps[:num_points], progress.epochs[:num_epochs]
    write_history(run, Progress(steps=steps, epochs=epochs), finished=False)


def test_run_is_compared_wherever_it_was_stopped(
    dataset: PreparedDataset, run: str, tmp_path: Path
) -> None:
    assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/whole")
    rewind(run, 2, 1)
    assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/without-history")
    assert_losses_of_one_worker(f"{tmp_path}/none", dataset.path, f"{tmp_path}/nothing")


@pytest.mark.parametrize("step", [STEPS_PER_EPOCH - 1, STEPS_PER_EPOCH])
def test_run_is_compared_where_it_left(dataset: PreparedDataset, tmp_path: Path, step: int) -> None:
    """Within an epoch, and at its end before the evaluation."""
    run, calls = str(tmp_path / "run"), iter([""] * (step - 1) + ["tired"])
    with pytest.raises(LeavingError):
        train(RECIPE, dataset, run, world=World(), asked=lambda: next(calls, "tired"))
    assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/fixed")
    assert newest(f"{tmp_path}/fixed").progress.step == step


def test_run_with_another_loss_is_found_out(
    dataset: PreparedDataset, run: str, tmp_path: Path
) -> None:
    saved = newest(run)
    last = saved.progress.steps[-1]
    assert last.loss is not None
    saved.progress.steps[-1] = replace(last, loss=last.loss + 1e-3)
    save_checkpoint(run, saved)
    with pytest.raises(AssertionError, match=r"history\.json and checkpoint differ"):
        assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/fixed")
    write_history(run, saved.progress, finished=False)
    with pytest.raises(AssertionError, match="approx"):
        assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/fixed")


def test_run_without_its_history_is_found_out(
    dataset: PreparedDataset, run: str, tmp_path: Path
) -> None:
    rewind(run, 1, 0)
    with pytest.raises(AssertionError, match=r"history\.json: lacks"):
        assert_losses_of_one_worker(run, dataset.path, f"{tmp_path}/fixed")
