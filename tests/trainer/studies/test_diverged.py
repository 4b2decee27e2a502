"""Runs that diverge: the others of an ensemble or a cross-validation are scored without them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from tests.support.errors import assert_error_line, assert_names
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.on_ray import tune as ray_tune
from trainer.recipe.recipe import Recipe
from trainer.report.runs import diverged_paths, member_paths
from trainer.report.write import write_report
from trainer.studies.ensemble.result import read_result
from trainer.training.loop import train
from trainer.training.world import World

DIVERGING = ("train.max_gradient_norm=1e-9", "train.max_bad_steps=2", "train.log_every_steps=1")

WILD: dict[str, dict[str, Any]] = {
    "data": {"fold": 1},
    "train": {"max_gradient_norm": 1e-9, "max_bad_steps": 2, "log_every_steps": 1},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def command(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Recipe, data and output of a command that trains without Ray."""
    monkeypatch.setattr(ray_tune, "train_unfinished", train_here)
    recipe = str(write_recipe(tmp_path / "tiny.toml", tiny_recipe(train={"epochs": 1})))
    return [recipe, "--data", dataset.path, "--out", f"{tmp_path}/runs"]


def train_here(recipes: Mapping[str, Recipe], data: str, *_: Any, **__: Any) -> dict[str, Any]:
    failures = {}
    for run_path, recipe in recipes.items():
        try:
            train(recipe, open_dataset(data), run_path, world=World())
        except UserError as error:
            failures[run_path] = error
    return failures


def test_ensemble_without_the_members_that_diverged(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = f"{tmp_path}/runs"
    variants = ["--variant", "wild", *DIVERGING]
    assert ray_job.main(["ensemble", *command, "--seeds", "1", "2", *variants]) == 0
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert_names(line, "diverged", f"{runs}/wild", "schedule.lr")
    assert "Ensemble of 2 on eval" in printed.out
    assert "wild │ diverged │ - │ - │ - │" in " ".join(printed.out.split())
    result = storage.read_json(f"{runs}/ensemble.json")
    assert (result["runs"], result["diverged"]) == (["seed-1", "seed-2"], ["wild"])
    assert list(result["members"]) == ["seed-1", "seed-2"]

    assert member_paths(runs) == [f"{runs}/seed-1", f"{runs}/seed-2"]
    assert diverged_paths(runs) == [f"{runs}/wild"]
    assert f"{runs}/wild diverged" in Path(write_report([runs])).read_text()


def test_cross_validation_without_the_folds_that_diverged(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def diverge_in_fold_1(recipes: Mapping[str, Recipe], data: str, *_: Any, **__: Any) -> Any:
        wild = {path: tiny_recipe(**WILD) for path in recipes if path.endswith("fold-1")}
        return train_here({**recipes, **wild}, data)

    monkeypatch.setattr(ray_tune, "train_unfinished", diverge_in_fold_1)
    assert ray_job.main(["cross-validate", *command]) == 0
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert_names(line, "diverged", f"{tmp_path}/runs/fold-1")
    text = " ".join(printed.out.split())
    assert "over 1 fold " in text
    assert "fold 1 │ diverged │ - │ - │ - │" in text
    result = storage.read_json(f"{tmp_path}/runs/cross_validation.json")
    assert (result["runs"], result["diverged"]) == (["fold-2"], ["fold-1"])


@pytest.mark.parametrize("seeds", [[], ["--seeds", "0", "1"]])
def test_cross_validation_without_the_folds_that_failed(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: list[str]
) -> None:
    """The table has the others, the status is 1, and the same command trains the rest."""
    runs = f"{tmp_path}/runs"
    fold = f"{runs}/seed-1/fold-1" if seeds else f"{runs}/fold-1"
    damaged = Path(fold, "checkpoints", "step-00000006.pt")
    storage.write_bytes(str(damaged), b"")
    assert ray_job.main(["cross-validate", *command, *seeds]) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert_error_line(line, f"{fold}/checkpoints", "damaged")
    row = "1 │ failed │ - │ - │ - │" if seeds else "fold 1 │ failed │ - │ - │ - │"
    assert row in " ".join(printed.out.split())
    name = "repeated_cross_validation.json" if seeds else "cross_validation.json"
    ((failed),) = storage.read_json(f"{runs}/{name}")["failed"]
    assert failed["run"] == fold.removeprefix(f"{runs}/")
    assert_names(failed["reason"], "damaged")
    assert f"{fold} failed" in Path(write_report([runs])).read_text()

    damaged.unlink()
    assert ray_job.main(["cross-validate", *command, *seeds]) == 0
    assert "failed" not in capsys.readouterr().out
    assert storage.read_json(f"{runs}/{name}")["failed"] == []


def test_if_all_diverge_it_is_an_error(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for setting in DIVERGING for word in ("--set", setting)]
    assert ray_job.main(["ensemble", *command, "--seeds", "1", "2", *settings]) == 1
    lines = capsys.readouterr().err.splitlines()
    for line, seed in zip(lines, (1, 2), strict=True):
        assert_error_line(line, f"{tmp_path}/runs/seed-{seed}", "schedule.lr")
    assert not Path(tmp_path, "runs", "ensemble.json").exists()


def test_members_that_failed_are_named_and_the_others_scored(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another failure than a divergence makes the status 1; once it is mended, nobody is missing"""
    runs = f"{tmp_path}/runs"
    damaged = Path(runs, "seed-2", "checkpoints", "step-00000006.pt")
    storage.write_bytes(str(damaged), b"")
    members = ["--seeds", "1", "2", "--variant", "wild", *DIVERGING]
    assert ray_job.main(["ensemble", *command, *members]) == 1
    printed = capsys.readouterr()
    failed, diverged = (line for line in printed.err.splitlines() if not line.startswith("note"))
    assert_error_line(failed, f"{runs}/seed-2/checkpoints", "damaged")
    assert_names(diverged, "warning", f"{runs}/wild", "schedule.lr")
    text = " ".join(printed.out.split())
    assert "Ensemble of 1 on eval" in text
    assert "seed-2 │ failed │ - │ - │ - │" in text
    result = read_result(f"{runs}/ensemble.json")
    assert (result.runs, result.diverged) == (["seed-1"], ["wild"])
    (named,) = result.failed
    assert named.run == "seed-2"
    assert_names(named.reason, f"{runs}/seed-2/checkpoints", "damaged")
    page = Path(write_report([runs])).read_text()
    assert f"{runs}/seed-2 failed" in page

    damaged.unlink()
    assert ray_job.main(["ensemble", *command, *members]) == 0
    assert_names(capsys.readouterr().out, "Ensemble of 2 on eval")
    assert read_result(f"{runs}/ensemble.json").failed == []
