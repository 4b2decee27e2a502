"""The summary after `train` and `evaluate`: scores, skipped steps, damaged files."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.result_table import result_table
from trainer.run.skipped_steps import read_bad_steps
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import read_predictions, write_predictions
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(
    train={"epochs": 1, "select_by": "mAP"}, averaging={"first_epoch": 1, "ema_decay": 0.9}
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def run(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("run"))
    train(RECIPE, dataset, path, world=World())
    return path


def shown(run: str) -> str:
    file = io.StringIO()
    Console(file=file, width=200).print(result_table(run, "eval"))
    return file.getvalue()


def train_again(recipe: Recipe, dataset: PreparedDataset, run: str, folder: Path) -> int:
    """By the command, of a run that is finished: so Ray is not asked."""
    recipe_file = str(write_recipe(folder / "tiny.toml", recipe))
    return ray_job.main(["train", recipe_file, "--data", dataset.path, "--out", run])


def test_summary_shows_the_scores_of_all_weights(run: str) -> None:
    rows = {line.split("│")[1].strip(): line for line in shown(run).splitlines() if "│" in line}
    for weights in ("averaged", "ema", "best"):
        metrics = storage.read_json(f"{run}/predictions/eval-{weights}.json")
        words = f"mAP {metrics['mAP']:.4f}, accuracy {metrics['accuracy']:.4f}"
        assert words in rows[f"{weights} weights"]
    assert "of epoch 1" in rows["best weights"]
    assert "scores" not in rows
    assert "skipped" not in rows


def test_summary_of_cross_entropy_names_the_scores(run: str, tmp_path: Path) -> None:
    metrics = storage.read_json(f"{run}/predictions/eval.json")
    for scores, shown_as in ((None, "softmax"), ("sigmoid", "sigmoid")):
        changed = {**metrics, "loss": "ce", "scores": scores}
        storage.write_json(f"{tmp_path}/predictions/eval.json", changed)
        assert f"{shown_as} outputs" in shown(str(tmp_path))


def test_labels_with_commas_stay_separate(run: str, tmp_path: Path) -> None:
    metrics = storage.read_json(f"{run}/predictions/eval.json")
    for entry, label, value in zip(
        metrics["per_class"], ("Ocean", "Chicken, rooster", "Rain"), (0.5, 0.4, None), strict=True
    ):
        entry |= {"label": label, "AP": value}
    storage.write_json(f"{tmp_path}/predictions/eval.json", metrics | {"mAP": 0.45})
    text = shown(str(tmp_path))
    assert "Ocean 0.50; Chicken, rooster 0.40 " in text
    assert "1 class without positives: Rain " in text


def test_scores_of_unlabelled_clips_are_dashes_with_a_note(run: str, tmp_path: Path) -> None:
    predictions = read_predictions(run, "eval")
    targets = np.zeros_like(predictions.targets)
    metrics = evaluate_scores(targets, predictions.scores, predictions.labels)
    write_predictions(str(tmp_path), replace(predictions, targets=targets), metrics)
    rows = [line.split("│")[1:3] for line in shown(str(tmp_path)).splitlines() if "│" in line]
    values = {name.strip(): value.strip() for name, value in rows}
    assert [values[name] for name in ("mAP", "mAUC", "d-prime", "accuracy")] == ["-"] * 4
    assert_names(values["note"], "no clip")
    assert "AP by class" not in values
    assert "left out" not in values


def test_long_path_of_predictions_is_printed_on_one_line(
    run: str, dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / ("long" * 30)
    Path(run).rename(longer)
    try:
        assert train_again(RECIPE, dataset, str(longer), tmp_path) == 0
    finally:
        longer.rename(run)
    assert capsys.readouterr().out.splitlines()[-1] == f"{longer}/predictions/eval.parquet"


def test_run_with_all_steps_skipped_is_an_error(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny_recipe(train={"epochs": 1, "max_gradient_norm": 1e-9})
    run = str(tmp_path / "run")
    train(recipe, dataset, run, world=World())
    assert train_again(recipe, dataset, run, tmp_path) == 1
    printed = capsys.readouterr()
    assert "6 of 6 steps, see divergence.jsonl" in printed.out
    values = ("all 6 steps", "divergence.jsonl", "train.max_gradient_norm", "--out")
    assert_error_line(printed.err, run, *values)


@pytest.mark.parametrize("content", ["", "{}", "[]", "{"])
def test_damaged_metrics_are_an_explained_error(tmp_path: Path, content: str) -> None:
    storage.write_bytes(f"{tmp_path}/predictions/eval.json", content.encode())
    with refused("predictions/eval.json", "damaged", remedy="`evaluate`"):
        result_table(str(tmp_path), "eval")


def test_damaged_history_is_an_explained_error(run: str, tmp_path: Path) -> None:
    metrics = storage.read_bytes(f"{run}/predictions/eval.json")
    storage.write_bytes(f"{tmp_path}/predictions/eval.json", metrics)
    storage.write_bytes(f"{tmp_path}/history.json", b"{}")
    with refused(tmp_path / "history.json", "damaged", remedy="command"):
        result_table(str(tmp_path), "eval")


def test_missing_metrics_are_an_explained_error(tmp_path: Path) -> None:
    with refused("predictions/eval.json", "no such file", remedy="`evaluate`"):
        result_table(str(tmp_path), "eval")


@pytest.mark.parametrize("content", ["{", "[]", '{"step": 1}', "\xff"])
def test_damaged_list_of_skipped_steps_is_named(tmp_path: Path, content: str) -> None:
    storage.write_bytes(f"{tmp_path}/divergence.jsonl", content.encode("latin-1"))
    with refused(tmp_path / "divergence.jsonl", "damaged", remedy="remove"):
        read_bad_steps(str(tmp_path))
