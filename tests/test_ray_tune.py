"""Ensembles on Ray Tune: seeds side by side, each carried on, the finished ones left alone."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ray_job
from pipeline import storage
from pipeline.dataset import PreparedDataset
from tests.prepared import make_prepared, tiny_recipe, write_recipe
from tests.runs import assert_close_runs
from tests.steps import started
from tests.test_ray_train import wait_for_step
from trainer import ray_tune
from trainer.loop import train
from trainer.predictions import read_predictions
from trainer.ray_tune import with_seed
from trainer.run_folder import is_finished
from trainer.world import World

RECIPE = tiny_recipe(train={"epochs": 4, "log_every_steps": 1, "checkpoint_every_s": 0})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml", RECIPE))


def ensemble_command(
    recipe_file: str, dataset: PreparedDataset, output: Path, *seeds: int
) -> list[str]:
    chosen = [str(seed) for seed in seeds]
    command = ["ensemble", recipe_file, "--data", dataset.path, "--out", str(output)]
    return [*command, "--seeds", *chosen]


def assert_ensemble(output: Path, text: str, seeds: list[int]) -> None:
    """The scores are the mean of the members', and the table is shown."""
    members = [read_predictions(f"{output}/seed-{seed}", "eval") for seed in seeds]
    found = read_predictions(str(output), "eval").scores
    np.testing.assert_allclose(found, np.mean([one.scores for one in members], axis=0), atol=1e-6)
    assert not np.allclose(members[0].scores, members[1].scores, atol=1e-3)
    numbers = storage.read_json(f"{output}/ensemble.json")
    assert list(numbers["members"]) == [f"seed-{seed}" for seed in seeds]
    assert f"Ensemble of {len(seeds)} on eval" in text
    for word in (*numbers["members"], "standard deviation", f"{numbers['ensemble']['mAP']:.4f}"):
        assert word in text


@pytest.mark.usefixtures("session")
def test_two_seeds_run_side_by_side_and_are_averaged(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "runs"
    command = ensemble_command(recipe_file, dataset, output, 1, 2)
    before = dict(os.environ)
    assert ray_job.main(command) == 0
    assert dict(os.environ) == before
    shown = capfd.readouterr()
    assert_ensemble(output, shown.out, [1, 2])
    assert shown.out.lstrip().startswith("Ensemble of 2"), "Tune is to be quiet"
    # Tune ends the processes of its trials by SIGTERM; what that interrupts, Python may tell of.
    expected = ("steps: ", "still waiting for the first step", "\x1b[36m(_trial pid=")
    assert [line for line in shown.err.splitlines() if not line.startswith(expected)] == []
    assert "steps: 48/48" in shown.err

    begun = [(output / f"seed-{seed}" / "run.json").stat().st_mtime for seed in (1, 2)]
    ended = [(output / f"seed-{seed}" / "history.json").stat().st_mtime for seed in (1, 2)]
    assert max(begun) < min(ended), "one after the other, though both fit"

    alone = tmp_path / "alone"
    train(with_seed(RECIPE, 2), dataset, str(alone), world=World())
    assert_close_runs(str(output / "seed-2"), str(alone))

    monkeypatch.setattr(ray_tune, "run_recipes", None)
    assert ray_job.main(command) == 0
    assert_ensemble(output, capfd.readouterr().out, [1, 2])


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_an_error_in_a_trial_is_one_line_and_spares_the_others(
    recipe_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Here a checkpoint of seed 1 that nobody can read. Then the same command carries on."""
    dataset = make_prepared(str(tmp_path / "data"))
    output = tmp_path / "runs"
    damaged = output / "seed-1" / "checkpoints" / "step-00000006.pt"
    storage.write_bytes(str(damaged), b"")
    command = ensemble_command(recipe_file, dataset, output, 1, 2)
    assert ray_job.main(command) == 1
    errors = [
        line
        for line in capfd.readouterr().err.splitlines()
        if not line.startswith(("steps: ", "still waiting", "\x1b[36m(_trial pid="))
        and "damaged, trying" not in line
    ]
    assert errors == [
        f"ray_job.py: error: {damaged.parent}: all 1 checkpoints are damaged; remove the run and "
        f"start it again"
    ]
    assert is_finished(str(output / "seed-2"))
    finished = (output / "seed-2" / "history.json").stat().st_mtime_ns

    damaged.unlink()
    assert ray_job.main(command) == 0
    assert_ensemble(output, capfd.readouterr().out, [1, 2])
    assert (output / "seed-2" / "history.json").stat().st_mtime_ns == finished


def test_seeds_that_cannot_be(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.session.connect", None)
    for seeds, message in (
        ((3, 4, 3), "--seeds: each may be named once, got 3 4 3"),
        ((0, -1), "--seeds: seed: must be from 0 to"),
    ):
        assert ray_job.main(ensemble_command(recipe_file, dataset, tmp_path, *seeds)) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"ray_job.py: error: {message}")
        assert error.count("\n") == 1


def test_only_the_seed_differs() -> None:
    changed = with_seed(RECIPE, 5)
    assert changed.train == replace(RECIPE.train, seed=5)
    assert replace(changed, train=RECIPE.train).to_json() == RECIPE.to_json()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_killed_ensemble_is_carried_on(
    dataset: PreparedDataset, recipe_file: str, tmp_path: Path
) -> None:
    """Three seeds on two CPUs: some have begun, one has not."""
    command = ensemble_command(recipe_file, dataset, tmp_path, 0, 1, 2)
    with started([*command, "--num-cpus", "2"]) as process:
        wait_for_step(process, tmp_path / "seed-0", 2)
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "Traceback" not in errors
    assert not (tmp_path / "ensemble.json").exists()
    # Its workers may outlive a killed process by a moment.
    time.sleep(3)

    with started([*command, "--num-cpus", "2"]) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_ensemble(tmp_path, output, [0, 1, 2])
    alone = str(tmp_path / "alone")
    train(with_seed(RECIPE, 0), dataset, alone, world=World())
    assert_close_runs(str(tmp_path / "seed-0"), alone)
