"""What of a run is found out before Ray starts."""

from pathlib import Path

from tests.prepared import make_prepared, tiny_recipe
from trainer.loop import train
from trainer.predictions import predictions_path
from trainer.run_checks import check_training
from trainer.run_folder import read_run
from trainer.world import World


def test_a_finished_run_without_its_predictions_is_not_through(tmp_path: Path) -> None:
    dataset, run = make_prepared(f"{tmp_path}/data"), f"{tmp_path}/run"
    recipe = tiny_recipe(augment={"crop": "random"}, train={"epochs": 1})
    train(recipe, dataset, run, world=World())
    assert check_training(recipe, dataset.path, run) == (True, [])
    path = predictions_path(run, read_run(run)["data"]["eval_name"])
    Path(path).unlink()
    is_finished, odd = check_training(recipe, dataset.path, run)
    assert not is_finished
    assert odd[0] == f"{path}: is gone, and is made again"
