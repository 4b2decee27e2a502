"""Cross-validation: a run for each fold, and the table over them."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_error_line, refused
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.on_ray import tune as ray_tune
from trainer.run.history import is_finished, read_history
from trainer.run.run_folder import read_run
from trainer.studies.cross_validation import (
    PICKED_BY,
    CrossValidation,
    fold_recipes,
    make_table,
    plan_folds,
    score_folds,
    with_finished,
)
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(train={"epochs": 2, "loss": "ce"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """40 clips to train on, in two folds."""
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def curve(*accuracies: float) -> list[dict[str, float | None]]:
    return [{"accuracy": value, "mAP": value / 2} for value in accuracies]


THREE = CrossValidation(
    metric="accuracy",
    folds={1: curve(0.5, 0.9, 0.6), 2: curve(0.4, 0.7, 0.8), 4: curve(0.3, 0.8, 0.7)},
)


def shown(result: CrossValidation) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(make_table(result))
    return file.getvalue()


def test_mean_and_deviation_cover_last_and_picked_epoch() -> None:
    last, picked = THREE.last, THREE.picked
    assert (last.epoch, picked.epoch) == (3, 2)
    assert [scores["accuracy"] for scores in last.folds.values()] == [0.6, 0.8, 0.7]
    assert list(last.folds) == ["1", "2", "4"]
    assert last.mean == pytest.approx({"accuracy": 0.7, "mAP": 0.35})
    assert last.std == pytest.approx({"accuracy": 0.1, "mAP": 0.05})
    assert picked.mean == pytest.approx({"accuracy": 0.8, "mAP": 0.4})
    assert (last.picked_by, picked.picked_by) == (None, PICKED_BY)
    assert "test clips" in PICKED_BY


def test_first_epoch_with_the_best_mean_is_picked() -> None:
    flat = CrossValidation(metric="accuracy", folds={1: curve(0.5, 0.5), 2: curve(0.5, 0.5)})
    assert flat.picked_epoch == 1
    for metric, expected in (("accuracy", 1), ("mAP", 2)):
        fold: list[dict[str, float | None]] = [
            {"accuracy": 0.9, "mAP": 0.1},
            {"accuracy": 0.8, "mAP": 0.2},
        ]
        folds = {1: fold}
        assert CrossValidation(metric=metric, folds=folds).picked_epoch == expected


def test_single_fold_has_no_deviation_and_keeps_undefined_scores() -> None:
    result = CrossValidation(metric="accuracy", folds={3: [{"accuracy": 0.5, "mAP": None}]})
    assert result.last.mean == {"accuracy": 0.5, "mAP": None}
    assert result.last.std == {"accuracy": None, "mAP": None}
    text = " ".join(shown(result).split())
    assert "standard deviation │ - │ - │ - │ - │" in text
    assert "over 1 fold " in text
    assert "the best score of the one fold" in text
    assert "mean over the folds" not in text


def test_folds_that_are_not_used_are_not_held_out(dataset: PreparedDataset) -> None:
    recipe = replace(RECIPE, data=replace(RECIPE.data, unused_folds=(1,)))
    assert [path[-6:] for path in fold_recipes(recipe, dataset, "runs", ())] == ["fold-2"]
    with refused("--folds", 1, 2):
        fold_recipes(recipe, dataset, "runs", [1])


def test_table_names_the_epochs_and_how_one_was_picked() -> None:
    text = shown(THREE)
    for words in ("over 3 folds", "epoch 3 (last)", "epoch 2 (picked)", "fold 4", "0.8000"):
        assert words in text
    assert PICKED_BY in " ".join(text.split())


def test_each_fold_is_held_out_once(dataset: PreparedDataset) -> None:
    recipes = fold_recipes(RECIPE, dataset, "/runs", ())
    assert list(recipes) == ["/runs/fold-1", "/runs/fold-2"]
    for fold, recipe in enumerate(recipes.values(), start=1):
        assert recipe == replace(RECIPE, data=replace(RECIPE.data, fold=fold))
    assert list(fold_recipes(RECIPE, dataset, "s3://b/runs", (2,))) == ["s3://b/runs/fold-2"]


def test_missing_or_repeated_folds_are_refused(dataset: PreparedDataset) -> None:
    for folds in ((3,), (1, 1), (0,)):
        with refused("--folds", "1 2", f"got {' '.join(map(str, folds))}"):
            fold_recipes(RECIPE, dataset, "/runs", folds)
    without = replace(RECIPE, data=replace(RECIPE.data, train_split="eval"))
    with refused(dataset.path, "'eval'", remedy="`manifest --folds 5`"):
        fold_recipes(without, dataset, "/runs", ())


def test_scores_come_from_the_runs(dataset: PreparedDataset, tmp_path: Path) -> None:
    """The epoch is picked by accuracy for single labels and by mAP for several."""
    recipes = fold_recipes(RECIPE, dataset, str(tmp_path), ())
    for path, recipe in recipes.items():
        train(recipe, dataset, path, world=World())
    result = score_folds(recipes, str(tmp_path))
    written = storage.read_json(f"{tmp_path}/cross_validation.json")
    assert written == {
        "runs": ["fold-1", "fold-2"],
        "diverged": [],
        "failed": [],
        "metric": "accuracy",
        "last_epoch": result.last.to_json(),
        "picked_epoch": result.picked.to_json(),
    }
    assert list(written["picked_epoch"]) == ["picked_by", "epoch", "folds", "mean", "std"]
    assert list(written["last_epoch"]) == ["epoch", "folds", "mean", "std"]
    assert (result.metric, result.num_epochs) == ("accuracy", 2)
    for fold in (1, 2):
        path = f"{tmp_path}/fold-{fold}"
        assert read_run(path).data.eval_name == f"train-fold{fold}"
        final = storage.read_json(f"{path}/predictions/train-fold{fold}.json")
        last = result.last.folds[str(fold)]
        assert last == {"accuracy": final["accuracy"], "mAP": final["mAP"]}
    multi = {
        path: replace(recipe, train=replace(recipe.train, loss="bce"))
        for path, recipe in recipes.items()
    }
    assert score_folds(multi, str(tmp_path)).metric == "mAP"

    empty = b'{"steps": [], "epochs": [], "finished": true}'
    # A single fold is scored with folds finished before, if they have the same settings.
    second = {path: recipe for path, recipe in recipes.items() if path.endswith("fold-2")}
    assert with_finished(second, recipes, dataset) == recipes
    with refused("fold-1", "train.loss = 'ce'", "'bce'", remedy="--out"):
        with_finished(second, multi, dataset)
    for content, problem in (
        (b"{", "damaged"),
        (b'{"epochs": [{}]}', "damaged"),
        (empty, "no scores"),
    ):
        storage.write_bytes(f"{tmp_path}/fold-2/history.json", content)
        with refused("fold-2/history.json", problem, remedy=True):
            score_folds(recipes, str(tmp_path))
    recipe_file = str(write_recipe(tmp_path / "tiny.toml", RECIPE))
    for left_out in ([], [f"{tmp_path}/fold-1"]):
        plan = plan_folds(recipe_file, [], dataset.path, str(tmp_path), (2,))
        assert list(plan.recipes) == list(second)
        assert list(plan.scored) == [path for path in recipes if path not in left_out]
        assert plan.left_out == left_out
        storage.remove(f"{tmp_path}/fold-1/history.json")


def test_setting_the_fold_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["cross-validate", "esc50", "--data", "d", "--out", "r", "--set", "data.fold = 2"]
    assert ray_job.main(command) == 1
    assert_error_line(capsys.readouterr().err, "--set data.fold = 2", "--folds", "data.fold")


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_command_trains_only_unfinished_folds(
    dataset: PreparedDataset,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe_file = write_recipe(tmp_path / "tiny.toml", RECIPE)
    output = tmp_path / "runs"
    command = ["cross-validate", str(recipe_file), "--data", dataset.path, "--out", str(output)]
    assert ray_job.main([*command, "--folds", "2"]) == 0
    printed = capfd.readouterr()
    assert "over 1 fold" in printed.out
    assert "not in the table, as not finished: fold-1\n" in printed.err
    assert not (output / "fold-1").exists()
    finished = (output / "fold-2" / "history.json").stat().st_mtime_ns

    assert ray_job.main(command) == 0
    shown = capfd.readouterr()
    assert "not in the table" not in shown.err
    assert (output / "fold-2" / "history.json").stat().st_mtime_ns == finished
    assert is_finished(str(output / "fold-1"))
    numbers = storage.read_json(f"{output}/cross_validation.json")
    last = read_history(str(output / "fold-1")).epochs[-1]
    assert numbers["last_epoch"]["folds"]["1"]["mAP"] == last.mAP
    assert f"{numbers['last_epoch']['mean']['accuracy']:.4f}" in shown.out

    monkeypatch.setattr(ray_tune, "run_recipes", None)
    for again in (command, [*command, "--folds", "2"]):
        assert ray_job.main(again) == 0
        assert "over 2 folds" in capfd.readouterr().out
