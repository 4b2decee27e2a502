"""A run that is told to stop after an epoch keeps its checkpoint, and resumes from it."""

from pathlib import Path

import pytest

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from tests.support.runs import assert_same_run, newest
from trainer.checkpoints.progress import EpochResult
from trainer.run.history import is_finished, read_history
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(train={"epochs": 3})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def test_stopped_run_resumes_as_if_it_had_not_been(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    run, whole = str(tmp_path / "run"), str(tmp_path / "whole")
    asked: list[EpochResult] = []

    def until_second(result: EpochResult) -> bool:
        history = read_history(run)
        assert history.epochs[-1] == result, "asked once the epoch is written"
        asked.append(result)
        return result.epoch < 2

    train(RECIPE, dataset, run, world=World(), go_on=until_second)
    assert [result.epoch for result in asked] == [1, 2]
    assert not is_finished(run)
    assert newest(run).progress.epoch == 3
    assert not (tmp_path / "run" / "predictions").exists()
    train(RECIPE, dataset, run, world=World(), go_on=until_second)
    assert len(asked) == 2, "not after the last epoch"
    train(RECIPE, dataset, whole, world=World())
    assert_same_run(run, whole)


def test_all_ranks_stop_as_the_first_says(dataset: PreparedDataset, tmp_path: Path) -> None:
    run_ranks(2, _train_one_epoch, dataset.path, str(tmp_path / "run"))
    assert len(read_history(str(tmp_path / "run")).epochs) == 1


def _train_one_epoch(world: World, data: str, run: str) -> None:
    def no(result: EpochResult) -> bool:
        assert world.is_first, "only the first rank is asked"
        return False

    train(RECIPE, open_dataset(data), run, world=world, go_on=no)
