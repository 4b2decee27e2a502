"""Checks of a run before Ray starts."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.prepared import make_prepared, tiny_recipe
from trainer.run.checks import check_training
from trainer.run.run_folder import read_run
from trainer.scores.predictions import metrics_path, predictions_path
from trainer.training.loop import train
from trainer.training.world import World


@pytest.mark.parametrize("result", [predictions_path, metrics_path])
def test_finished_run_without_predictions_is_unfinished(
    tmp_path: Path, result: Callable[[str, str], str]
) -> None:
    dataset, run = make_prepared(f"{tmp_path}/data"), f"{tmp_path}/run"
    recipe = tiny_recipe(augment={"crop": "random"}, train={"epochs": 1})
    train(recipe, dataset, run, world=World())
    assert check_training(recipe, dataset.path, run) == (True, [])
    path = result(run, read_run(run).data.eval_name)
    Path(path).unlink()
    is_finished, warnings = check_training(recipe, dataset.path, run)
    assert not is_finished
    assert [line for line in warnings if line.startswith(f"{path}: ")]
