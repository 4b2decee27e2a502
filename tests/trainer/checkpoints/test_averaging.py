"""Averages of weights and scores: they are the right means, and training is unaffected."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import SettingValueError
from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import assert_same_run, newest, untimed
from trainer.checkpoints.averaging import (
    average_epochs,
    remove_other_epochs,
    update_ema,
    write_weights,
)
from trainer.checkpoints.paths import epoch_name, weights_path
from trainer.checkpoints.progress import EpochResult, best_epoch
from trainer.checkpoints.settings import AveragingSettings
from trainer.checkpoints.state_files import read_state
from trainer.data.clips import select_training_data
from trainer.data.loader import Loader
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import read_predictions
from trainer.training import loop, run_state
from trainer.training.evaluation import Evaluation, evaluate
from trainer.training.loop import make_model, train
from trainer.training.world import World

AVERAGED: dict[str, Any] = {"first_epoch": 1, "last_epoch": 2, "ema_decay": 0.9}
OTHERS = ("averaged", "ema", "best")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def averaged(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = str(tmp_path_factory.mktemp("run"))
    recipe = tiny_recipe(averaging=AVERAGED, train={"select_by": "mAP"})
    train(recipe, dataset, run, world=World())
    return run


def scores_of(recipe: Recipe, dataset: PreparedDataset, weights: str) -> np.ndarray[Any, Any]:
    data = select_training_data(dataset, recipe.data)
    model = make_model(recipe, dataset, fresh=False)
    model.load_state_dict(read_state(weights))
    return evaluate(
        model,
        Loader(data.evaluation, recipe.loader, num_frames=recipe.model.num_frames),
        mean=data.mean,
        std=data.std,
        settings=recipe.train,
        world=World(),
        run_path="run",
    ).scores


def test_average_is_the_mean_of_every_entry(tmp_path: Path) -> None:
    run = str(tmp_path)
    generator = torch.Generator().manual_seed(0)
    states = [
        {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(4, generator=generator)}
        for _ in range(3)
    ]
    for epoch, state in enumerate(states, start=1):
        write_weights(run, epoch_name(epoch), state)
    mean = average_epochs(run, range(2, 4))
    for name in ("a", "b"):
        assert mean[name].dtype == torch.float32
        torch.testing.assert_close(mean[name], (states[1][name] + states[2][name]) / 2)
    with refused("epochs/epoch-04.safetensors", "no such file"):
        average_epochs(run, range(2, 5))


def test_flipped_bit_in_epoch_weights_is_refused(tmp_path: Path) -> None:
    write_weights(str(tmp_path), epoch_name(1), {"a": torch.ones(3)})
    path = Path(weights_path(str(tmp_path), epoch_name(1)))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with refused(path, "damaged", "checksum", remedy="restore"):
        average_epochs(str(tmp_path), [1])


def test_moving_average_follows_its_formula() -> None:
    average = {"a": torch.tensor([1.0, 2.0])}
    for value in (2.0, 4.0):
        update_ema(average, {"a": torch.tensor([value, 0.0])}, 0.75)
    torch.testing.assert_close(average["a"], torch.tensor([1.9375, 1.125]))


def test_averages_are_evaluated_besides_the_last_weights(
    dataset: PreparedDataset, averaged: str
) -> None:
    recipe = tiny_recipe(averaging=AVERAGED)
    names = ["averaged", "best", "ema", "epoch-01", "epoch-02"]
    paths = [weights_path(averaged, name) for name in names]
    assert storage.list_files(f"{averaged}/epochs") == paths
    mean, first, second = (read_state(paths[number]) for number in (0, 3, 4))
    for name, value in mean.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2)
    for name in OTHERS:
        predictions = read_predictions(averaged, f"eval-{name}")
        expected = scores_of(recipe, dataset, weights_path(averaged, name))
        np.testing.assert_allclose(predictions.scores, expected, atol=1e-6)
        assert predictions.source.weights == name
        metrics = storage.read_json(f"{averaged}/predictions/eval-{name}.json")
        assert metrics["mAP"] == pytest.approx(
            evaluate_scores(predictions.targets, predictions.scores, predictions.labels).mAP
        )
    first_scores, second_scores = (
        read_predictions(averaged, f"eval-{name}").scores for name in OTHERS[:2]
    )
    assert not np.allclose(first_scores, second_scores)


def test_epoch_scores_are_averaged(dataset: PreparedDataset, averaged: str) -> None:
    recipe = tiny_recipe(averaging=AVERAGED)
    scores = [scores_of(recipe, dataset, weights_path(averaged, epoch_name(n))) for n in (1, 2)]
    last = read_predictions(averaged, "eval")
    scores.append(last.scores)
    for number, epoch in enumerate(read_history(averaged).epochs, start=1):
        mean = np.mean(scores[:number], axis=0)
        expected = evaluate_scores(last.targets, mean, last.labels)
        for name in ("mAP", "mAUC", "d_prime", "accuracy"):
            value = getattr(expected, name)
            assert getattr(epoch, f"cumulative_{name}") == pytest.approx(value, abs=1e-5), name


class Stopped(Exception):  # noqa: N818 (no error of the code)
    """Ends a run in a test."""


def test_averaging_is_unaffected_by_restarts_and_leaves_training_alone(
    dataset: PreparedDataset, averaged: str, tmp_path: Path
) -> None:
    plain, stopped = str(tmp_path / "plain"), str(tmp_path / "stopped")
    train(tiny_recipe(), dataset, plain, world=World())
    assert untimed(plain) == untimed(averaged)
    for name, value in newest(plain).model.items():
        assert torch.equal(newest(averaged).model[name], value)

    selecting = {"select_by": "mAP", "checkpoint_every_s": 0}
    recipe = tiny_recipe(averaging=AVERAGED, train=selecting)
    steps = [5, 9, 15]

    def stop(progress: RunProgress) -> None:
        if steps and progress.step == steps[0]:
            steps.pop(0)
            raise Stopped

    while steps:
        with pytest.raises(Stopped):
            train(recipe, dataset, stopped, world=World(), report=stop)
    train(recipe, dataset, stopped, world=World())
    assert_same_run(stopped, averaged)
    for name in OTHERS:
        state, expected = (read_state(weights_path(run, name)) for run in (stopped, averaged))
        assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("values", "best"), [([0.1, 0.3, 0.2], 2), ([0.3, 0.3, 0.1], 1), ([None, 0.0], 2), ([None], 1)]
)
def test_earliest_of_equally_good_epochs_is_best(values: list[float | None], best: int) -> None:
    results = [
        EpochResult(epoch=number, step=number, mAP=value, accuracy=0.5)
        for number, value in enumerate(values, start=1)
    ]
    assert best_epoch(results, "mAP").epoch == best


@pytest.mark.parametrize(
    ("values", "kept"),
    [([0.1, 0.3, 0.2], ["01", "01 02", "02"]), ([0.3, 0.1, 0.2], ["01", "01", "01"])],
)
def test_best_epoch_is_selected_by_its_metric(
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    kept: list[str],
) -> None:
    """Scores are those at the end of the run; no more weights are kept than may be needed."""
    run, left = str(tmp_path), []
    waiting = iter(values)

    def evaluated(*arguments: Any, **others: Any) -> Evaluation:
        result = evaluate(*arguments, **others)
        return replace(result, metrics=replace(result.metrics, accuracy=next(waiting, 0.0)))

    monkeypatch.setattr(loop, "evaluate", evaluated)

    def noting(*arguments: Any) -> None:
        remove_other_epochs(*arguments)
        files = storage.list_files(f"{run}/epochs")
        left.append(" ".join(file[-14:-12] for file in files if "epoch-" in file))

    for module in (loop, run_state):
        monkeypatch.setattr(module, "remove_other_epochs", noting)
    train(tiny_recipe(train={"select_by": "accuracy"}), dataset, run, world=World())
    assert left == [*kept, ""]
    assert storage.list_files(f"{run}/epochs") == [weights_path(run, "best")]
    chosen = read_history(run).epochs[int(np.argmax(values))]
    best = storage.read_json(f"{run}/predictions/eval-best.json")
    assert {key: best[key] for key in ("weights", "epoch", "checkpoint_step", "mAP")} == {
        "weights": "best",
        "epoch": chosen.epoch,
        "checkpoint_step": chosen.step,
        "mAP": chosen.mAP,
    }


@pytest.mark.parametrize(
    ("settings", "name", "values"),
    [
        ({"first_epoch": -1}, "first_epoch", ["got -1"]),
        ({"last_epoch": 3}, "first_epoch", ["last_epoch", 3, "got 0"]),
        ({"first_epoch": 4, "last_epoch": 3}, "first_epoch", ["last_epoch", 3, "got 4"]),
        ({"ema_decay": 1.0}, "ema_decay", ["got 1.0"]),
    ],
)
def test_averaging_settings_out_of_range_are_refused(
    settings: dict[str, Any], name: str, values: list[object]
) -> None:
    with refused(name, *values, type=SettingValueError):
        AveragingSettings(**settings)


def test_averaging_past_the_last_epoch_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(averaging={"first_epoch": 2, "last_epoch": 4})
    with refused("averaging.last_epoch", "train.epochs", 3, "got 4"):
        train(recipe, dataset, str(tmp_path), world=World())
    assert list(AveragingSettings(first_epoch=3).epochs(5)) == [3, 4, 5]
    assert list(AveragingSettings().epochs(5)) == []
