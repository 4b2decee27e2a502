"""Checks of a run before Ray starts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import UserError
from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.data.clips import select_training_data
from trainer.run.checks import check_evaluation, check_training
from trainer.run.run_folder import describe_run, read_run, write_run
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


def test_first_class_that_differs_is_named_before_ray_starts(tmp_path: Path) -> None:
    dataset, run = make_prepared(f"{tmp_path}/data"), f"{tmp_path}/run"
    data = select_training_data(dataset, tiny_recipe().data)
    info = describe_run(tiny_recipe(), dataset, data, 1000)
    labels = ["low", "medium", "high"]
    write_run(run, replace(info, data=replace(info.data, labels=labels)))
    with refused(dataset.path, run, "class 2", "'middle'", "'medium'", remedy="--labels"):
        check_evaluation(run, dataset.path, "eval", 0)


def test_evaluation_of_a_run_that_cannot_be_written_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, run = make_prepared(f"{tmp_path}/data"), f"{tmp_path}/run"
    train(tiny_recipe(train={"epochs": 1}), dataset, run, world=World())
    before = storage.list_files(run)
    assert check_evaluation(run, dataset.path, "train", 2) == "train-fold2"
    assert storage.list_files(run) == before

    def refuse(path: str, data: bytes) -> None:
        raise UserError(path, "cannot be written (Read-only file system)")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    with refused(run, "Read-only"):
        check_evaluation(run, dataset.path, "train", 2)
