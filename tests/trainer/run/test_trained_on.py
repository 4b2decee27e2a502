"""An evaluation says how many of its clips the run was trained on."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_names
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.data.clips import select_clips, select_training_data
from trainer.run.run_folder import RunInfo, describe_run, write_run
from trainer.run.trained_on import note_trained_on


@pytest.fixture
def dataset(tmp_path: Path) -> PreparedDataset:
    return make_prepared(f"{tmp_path}/data")


@pytest.fixture
def run(dataset: PreparedDataset, tmp_path: Path) -> RunInfo:
    """A run that held fold 1 of two out."""
    recipe = tiny_recipe(data={"fold": 1})
    info = describe_run(recipe, dataset, select_training_data(dataset, recipe.data), 1000)
    write_run(f"{tmp_path}/run", info)
    return info


@pytest.mark.parametrize(
    ("split", "fold", "values"),
    [("train", 1, []), ("eval", 0, []), ("train", 0, ["20 of 40"]), ("train", 2, ["all 20"])],
)
@pytest.mark.parametrize("is_same", [True, False])
def test_clips_that_were_trained_on_are_counted(
    dataset: PreparedDataset,
    run: RunInfo,
    tmp_path: Path,
    split: str,
    fold: int,
    values: list[str],
    is_same: bool,
) -> None:
    """In another data set, clips are known by their ids."""
    if not is_same:
        dataset = make_prepared(f"{tmp_path}/other", seed=1)
    clips = select_clips(dataset, split, fold)
    note = note_trained_on(f"{tmp_path}/run", run, dataset, clips)
    assert bool(note) == bool(values)
    assert_names(note, *values)


def test_unreadable_training_data_are_named(run: RunInfo, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "data")
    other = make_prepared(f"{tmp_path}/other", seed=1)
    note = note_trained_on(f"{tmp_path}/run", run, other, select_clips(other, "eval"))
    assert_names(note, "unknown", tmp_path / "data")


def test_corrected_training_data_do_not_say_what_was_trained_on(
    run: RunInfo, tmp_path: Path
) -> None:
    corrected = make_prepared(f"{tmp_path}/data", seed=1)
    clips = select_clips(corrected, "train", 1)
    note = note_trained_on(f"{tmp_path}/run", run, corrected, clips)
    assert_names(note, "unknown", tmp_path / "data", "corrected")


def test_nothing_is_known_of_the_training_of_an_imported_model(
    dataset: PreparedDataset, run: RunInfo, tmp_path: Path
) -> None:
    imported = replace(run, imported_from="model.pth")
    clips = select_clips(dataset, "train")
    assert note_trained_on(f"{tmp_path}/run", imported, dataset, clips) == ""
