"""A finished run goes on with more epochs, and ends as if it had had them from the start."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import assert_same_run, newest
from trainer.recipe.recipe import Recipe
from trainer.report.runs import load_run
from trainer.run.checks import check_training
from trainer.run.history import is_finished
from trainer.run.run_folder import check_same_run
from trainer.scores.predictions import write_predictions
from trainer.training import loop, run_state
from trainer.training.loop import train
from trainer.training.world import World

ALL_WEIGHTS: dict[str, Any] = {"averaging": {"first_epoch": 1, "ema_decay": 0.9}}


def recipe_of(num_epochs: int, *decays: int) -> Recipe:
    """A run with every kind of weights, and a checkpoint after each step."""
    return tiny_recipe(
        **ALL_WEIGHTS,
        schedule={"decay_after_epochs": list(decays or (2,))},
        train={"epochs": num_epochs, "select_by": "mAP", "checkpoint_every_s": 0},
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def run(dataset: PreparedDataset, tmp_path: Path) -> str:
    """A finished run of two epochs."""
    return whole_run(recipe_of(2), dataset, tmp_path / "run")


def whole_run(recipe: Recipe, dataset: PreparedDataset, folder: Path) -> str:
    train(recipe, dataset, str(folder), world=World())
    return str(folder)


def assert_same_files(run: str, other: str) -> None:
    """All files hold the same, but for times; most are the same bytes."""
    assert_same_run(run, other)
    files, others = (
        [path.removeprefix(folder) for path in storage.list_files(folder)]
        for folder in (run, other)
    )
    is_own = ("/.", "/tensorboard/")
    names = [name for name in files if not name.startswith(is_own)]
    assert names == [name for name in others if not name.startswith(is_own)]
    timed = ("/writer.json", "/history.json")
    same = [name for name in names if name not in timed and "/checkpoints/" not in name]
    assert [name for name in same if "/epochs/" in name]
    for name in same:
        assert storage.read_bytes(run + name) == storage.read_bytes(other + name), name


@pytest.mark.parametrize("decays", [(2,), (2, 3)])
def test_finished_run_goes_on_as_if_it_had_had_the_epochs_from_the_start(
    dataset: PreparedDataset, run: str, tmp_path: Path, decays: tuple[int, ...]
) -> None:
    """Also with a decay that none of the old epochs reached."""
    recipe = recipe_of(4, *decays)
    assert check_training(recipe, dataset.path, run)[0] is False
    train(recipe, dataset, run, world=World())
    assert_same_files(run, whole_run(recipe, dataset, tmp_path / "whole"))
    assert check_training(recipe, dataset.path, run)[0] is True


class StoppedError(Exception):
    """The run was stopped, as by a kill."""


def stopping_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    calls_left = itertools.count(call - 1, -1)

    def stopping(*arguments: Any, **others: Any) -> Any:
        if next(calls_left) == 0:
            raise StoppedError
        return function(*arguments, **others)

    return stopping


@pytest.mark.parametrize(
    ("module", "name", "call"),
    [
        (loop, "write_run", 1),
        (run_state, "save_checkpoint", 1),
        (loop, "evaluate", 1),
        (loop, "write_predictions", 2),
        (loop, "remove_other_epochs", 1),
    ],
)
def test_run_stopped_while_it_goes_on_is_unfinished_and_resumes(
    dataset: PreparedDataset,
    run: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    name: str,
    call: int,
) -> None:
    recipe = recipe_of(3)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping_at(call, getattr(module, name)))
        with pytest.raises(StoppedError):
            train(recipe, dataset, run, world=World())
    # All but removing weights that nothing needs any more was done in the last case.
    assert is_finished(run) is (name == "remove_other_epochs")
    train(recipe, dataset, run, world=World())
    assert_same_run(run, whole_run(recipe, dataset, tmp_path / "whole"))


def test_predictions_before_a_run_went_on_are_not_its_result(
    dataset: PreparedDataset, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_run(run, "run").main_evaluation == "eval"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_predictions", stopping_at(1, write_predictions))
        with pytest.raises(StoppedError):
            train(recipe_of(3), dataset, run, world=World())
    report = load_run(run, "run")
    assert report.main_evaluation is None
    assert report.final.mAP == report.epochs[-1].mAP
    assert "eval (step 12, before the run went on)" in report.all_evaluations


@pytest.mark.parametrize(
    ("recipe", "values", "remedy"),
    [
        (recipe_of(1), ["train.epochs = 2", 1], "--out"),
        (recipe_of(3, 1), ["schedule.decay_after_epochs = [2]", [1]], "below 2"),
        (
            tiny_recipe(train={"epochs": 3, "select_by": "mAP", "checkpoint_every_s": 0}),
            ["averaging.first_epoch = 1", 0],
            "--out",
        ),
    ],
)
def test_other_past_is_refused_with_what_to_do(
    dataset: PreparedDataset, run: str, recipe: Recipe, values: list[object], remedy: str
) -> None:
    with refused(run, *values, remedy=remedy):
        check_training(recipe, dataset.path, run)


def test_only_training_goes_on(dataset: PreparedDataset, run: str) -> None:
    """A table of folds, say, must not mix runs of different epochs."""
    with refused(run, "train.epochs = 2", 3, remedy="--out"):
        check_same_run(run, recipe_of(3), dataset)


def test_what_more_epochs_need_must_be_there(
    dataset: PreparedDataset, run: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Path(run, "epochs", "epoch-01.safetensors")
    data = kept.read_bytes()
    kept.unlink()
    with refused(kept, remedy="--out"):
        check_training(recipe_of(3), dataset.path, run)
    kept.write_bytes(data)
    with caplog.at_level("INFO"):
        check_training(recipe_of(3), dataset.path, run)
    assert_names(caplog.messages[-1], run, 2, 3)
    assert newest(run).progress.epoch == 3
    for path in Path(run, "checkpoints").iterdir():
        path.unlink()
    with refused(f"{run}/checkpoints", remedy="--out"):
        check_training(recipe_of(3), dataset.path, run)
