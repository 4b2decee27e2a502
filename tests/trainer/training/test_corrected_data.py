"""A training does not go on with a data set that was corrected since."""

from pathlib import Path

from pipeline.dataset.prepared import open_dataset
from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.run.run_folder import read_run
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(train={"epochs": 1})


def test_run_goes_on_only_with_the_data_it_was_started_with(tmp_path: Path) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    train(RECIPE, make_prepared(data), run, world=World())
    begun = read_run(run)
    corrected = make_prepared(data, seed=1)
    # Such as a worker that is started again in place of a lost one.
    with refused(run, "corrected", data, remedy="--out"):
        train(RECIPE, corrected, run, world=World())
    assert read_run(run) == begun
    make_prepared(data)
    train(RECIPE, open_dataset(data), run, world=World())
