"""Cross-validation repeated over seeds: a folder for each seed, and the table over them."""

import io
import statistics
from pathlib import Path

import pytest
from rich.console import Console

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_error_line, refused
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.on_ray import tune as ray_tune
from trainer.report.runs import member_paths
from trainer.run.history import is_finished
from trainer.run.run_folder import read_run, run_name
from trainer.studies.cross_validation import CrossValidation
from trainer.studies.repeated_validation import (
    RepeatedValidation,
    make_table,
    plan_seeds,
    score_seeds,
)
from trainer.studies.shared import NotScored
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(train={"epochs": 2, "loss": "ce"})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """40 clips to train on, in two folds."""
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    return str(write_recipe(tmp_path / "tiny.toml", RECIPE))


def validation(*folds: tuple[float, ...]) -> CrossValidation:
    """Accuracies of each fold, epoch by epoch."""
    return CrossValidation(
        metric="accuracy",
        folds={
            number: [{"accuracy": value, "mAP": value / 2} for value in curve]
            for number, curve in enumerate(folds, start=1)
        },
    )


def shown(result: RepeatedValidation) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(make_table(result))
    return " ".join(file.getvalue().split())


def test_deviation_is_that_of_the_folds_mean_over_the_seeds() -> None:
    """Each seed picks its own epoch: here the second, the first and the second."""
    result = RepeatedValidation(
        seeds={
            0: validation((0.5, 0.9), (0.3, 0.5)),
            1: validation((0.8, 0.7), (0.8, 0.5)),
            5: validation((0.1, 0.6), (0.1, 1.0)),
        },
        diverged=[7],
    )
    last, picked = result.last, result.picked
    assert [last.seeds[seed]["accuracy"] for seed in ("0", "1", "5")] == pytest.approx(
        [0.7, 0.6, 0.8]
    )
    assert picked.epochs == {"0": 2, "1": 1, "5": 2}
    assert last.mean == pytest.approx({"accuracy": 0.7, "mAP": 0.35})
    assert last.std == pytest.approx({"accuracy": 0.1, "mAP": 0.05})
    deviation = statistics.stdev([0.7, 0.8, 0.8])
    assert picked.std == pytest.approx({"accuracy": deviation, "mAP": deviation / 2})
    text = shown(result)
    assert "for 3 seeds" in text
    assert "7 │ diverged │" in text
    assert "standard deviation │ 0.1000 │ 0.0500 │" in text
    assert "epoch 2, 1, 2" in text


def test_each_seed_has_a_folder_of_folds(
    dataset: PreparedDataset, recipe_file: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "runs")
    plan = plan_seeds(recipe_file, [], dataset.path, out, folds=[], seeds=[0, 3])
    assert {seed: list(runs) for seed, runs in plan.items()} == {
        seed: [f"{out}/seed-{seed}/fold-{fold}" for fold in (1, 2)] for seed in (0, 3)
    }
    for seed, runs in plan.items():
        for path, recipe in runs.items():
            assert (recipe.train.seed, recipe.data.fold) == (seed, int(path[-1]))
            train(recipe, dataset, path, world=World())
    result = score_seeds(plan, out)
    means = [
        storage.read_json(f"{out}/seed-{seed}/cross_validation.json")["last_epoch"]["mean"]
        for seed in (0, 3)
    ]
    written = storage.read_json(f"{out}/repeated_cross_validation.json")
    assert written["last_epoch"]["seeds"] == {"0": means[0], "3": means[1]}
    precisions = [mean["mAP"] for mean in means]
    assert precisions[0] != precisions[1]
    assert result.last.std["mAP"] == pytest.approx(statistics.stdev(precisions))
    assert member_paths(out) == [path for runs in plan.values() for path in runs]
    first = f"{out}/seed-0/fold-1"
    assert score_seeds(plan, out, NotScored(diverged=[first])).diverged == [0]
    with refused(out, "diverged", remedy="schedule.lr"):
        score_seeds(plan, out, NotScored(diverged=[first], failed={f"{out}/seed-3/fold-2": "why"}))


def test_unsuitable_seeds_are_refused(
    dataset: PreparedDataset, recipe_file: str, tmp_path: Path
) -> None:
    out = str(tmp_path / "runs")
    for seeds, what in (([1, 1], "1 1"), ([-1], "-1")):
        with refused("--seeds", what):
            plan_seeds(recipe_file, [], dataset.path, out, folds=[], seeds=seeds)
    with refused("--set train.seed=3", "--seeds", remedy=True):
        plan_seeds(recipe_file, ["train.seed=3"], dataset.path, out, folds=[], seeds=[1])
    storage.write_bytes(f"{out}/cross_validation.json", b"{}")
    with refused(out, "a cross-validation", remedy="--out"):
        plan_seeds(recipe_file, [], dataset.path, out, folds=[], seeds=[1])


def test_messages_name_the_seed_of_a_repeated_fold() -> None:
    paths = ("/runs/seed-1/fold-2", "s3://b/runs/seed-1", "/runs/fold-2")
    assert list(map(run_name, paths)) == ["seed-1/fold-2", "seed-1", "fold-2"]


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_command_trains_only_unfinished_runs(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "runs"
    command = ["cross-validate", recipe_file, "--data", dataset.path, "--out", str(out)]
    assert ray_job.main([*command, "--seeds", "0"]) == 0
    assert "for 1 seed" in capfd.readouterr().out
    finished = (out / "seed-0" / "fold-2" / "history.json").stat().st_mtime_ns
    assert ray_job.main([*command, "--seeds", "0", "2"]) == 0
    printed = capfd.readouterr().out
    assert "for 2 seeds" in printed
    assert (out / "seed-0" / "fold-2" / "history.json").stat().st_mtime_ns == finished
    assert is_finished(str(out / "seed-2" / "fold-1"))
    assert read_run(str(out / "seed-2" / "fold-1")).seed == 2
    numbers = storage.read_json(f"{out}/repeated_cross_validation.json")
    assert f"{numbers['last_epoch']['mean']['accuracy']:.4f}" in printed

    monkeypatch.setattr(ray_tune, "run_recipes", None)
    assert ray_job.main([*command, "--seeds", "0", "2"]) == 0
    assert "for 2 seeds" in capfd.readouterr().out
    assert ray_job.main(command) == 1
    assert_error_line(capfd.readouterr().err, str(out), "several seeds", "--out")
