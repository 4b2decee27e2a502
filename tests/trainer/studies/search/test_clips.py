"""The clips that a search chooses by are not those that the recipe reports on."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.errors import refused
from trainer.data.settings import DataSettings
from trainer.studies.search.clips import choose_clips


def made_up(splits: str = "train eval", folds: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Any:
    """A data set whose training split has these folds."""
    return SimpleNamespace(
        path="/data",
        card=SimpleNamespace(splits=dict.fromkeys(splits.split())),
        folds=lambda split: list(folds),
    )


@pytest.mark.parametrize(
    ("recipe", "splits", "folds", "name", "unused"),
    [
        # The fold that the recipe reports is left alone.
        ({"fold": 1}, "train", (1, 2, 3, 4, 5), "train-fold2", (1,)),
        ({"fold": 5}, "train", (1, 2, 3, 4, 5), "train-fold1", (5,)),
        ({"fold": 1}, "train validation", (1, 2, 3), "train-fold2", (1,)),
        ({"fold": 1, "unused_folds": (2,)}, "train", (1, 2, 3, 4), "train-fold3", (2, 1)),
        # The recipe reports on a split.
        ({}, "train eval", (1, 2), "train-fold1", ()),
        ({}, "train eval", (0, 1), "train-fold1", ()),
        ({}, "train eval val", (1, 2), "val", ()),
        # The recipe evaluates on a split for choosing already.
        ({"eval_split": "validation"}, "train validation test", (0,), "validation", ()),
    ],
)
def test_default(
    recipe: dict[str, Any], splits: str, folds: tuple[int, ...], name: str, unused: tuple[int, ...]
) -> None:
    data = DataSettings(**recipe)
    chosen = choose_clips(data, made_up(splits, folds))
    assert (chosen.name, chosen.data.unused_folds) == (name, unused)
    assert chosen.reported == data.eval_name
    assert not chosen.are_reported


@pytest.mark.parametrize(
    ("recipe", "splits", "folds"),
    [
        ({}, "train eval", (0,)),
        ({}, "train eval", (1,)),
        ({"fold": 1}, "train", (1, 2)),
        ({"fold": 1}, "train", (1,)),
    ],
)
def test_no_other_clips_is_an_error(
    recipe: dict[str, Any], splits: str, folds: tuple[int, ...]
) -> None:
    with refused("/data", "'train'", DataSettings(**recipe).eval_name, remedy="--folds 5"):
        choose_clips(DataSettings(**recipe), made_up(splits, folds))


def test_user_names_a_fold_or_a_split() -> None:
    data = DataSettings(fold=1)
    by_fold = choose_clips(data, made_up(), fold=4)
    assert (by_fold.name, by_fold.data.unused_folds) == ("train-fold4", (1,))
    by_split = choose_clips(data, made_up(), split="extra")
    assert (by_split.name, by_split.data.unused_folds) == ("extra", (1,))
    assert not by_fold.are_reported
    assert not by_split.are_reported


def test_clips_that_the_recipe_reports_on_are_known_as_such() -> None:
    assert choose_clips(DataSettings(fold=1), made_up(), fold=1).are_reported
    assert choose_clips(DataSettings(), made_up(), split="eval").are_reported
    validation = DataSettings(eval_split="validation")
    assert not choose_clips(validation, made_up(), split="validation").are_reported


def test_fold_that_is_not_used_is_refused() -> None:
    with refused("--fold", "2"):
        choose_clips(DataSettings(fold=1, unused_folds=(2,)), made_up(), fold=2)
