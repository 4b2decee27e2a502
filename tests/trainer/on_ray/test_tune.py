"""Ensembles on Ray Tune: seeds run in parallel and resume; finished runs are left alone."""

import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from ray import tune

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from tests.support.errors import assert_error_line, assert_names
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.runs import assert_close_runs
from tests.support.steps import own_lines, started, wait_for_step
from trainer.data.clips import select_training_data
from trainer.on_ray import tune as ray_tune
from trainer.on_ray.settings import Workers
from trainer.recipe.parse import load_recipe
from trainer.run.history import is_finished
from trainer.run.run_folder import describe_run, write_run
from trainer.scores.predictions import read_predictions
from trainer.studies.ensemble.plan import with_seed
from trainer.studies.ensemble.result import read_ensemble, read_result
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(
    augment={"crop": "random"},
    train={"epochs": 4, "log_every_steps": 1, "checkpoint_every_s": 0},
)


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


def assert_ensemble(output: Path, text: str, runs: list[str]) -> None:
    """The scores are the mean of the members', and the table is shown."""
    members = [read_predictions(f"{output}/{run}", "eval") for run in runs]
    scores = read_predictions(str(output), "eval").scores
    expected = np.mean([member.scores for member in members], axis=0)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    for one, other in pairwise(members):
        assert not np.allclose(one.scores, other.scores, atol=1e-3)
    numbers = storage.read_json(f"{output}/ensemble.json")
    assert list(numbers["members"]) == runs
    assert f"Ensemble of {len(runs)} on eval" in text
    for word in (*numbers["members"], "standard deviation", f"{numbers['ensemble']['mAP']:.4f}"):
        assert word in text


@pytest.mark.usefixtures("session")
def test_seed_and_variant_train_in_parallel_and_are_averaged(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "runs"
    changes = ["train.seed=3", "model.stride_time=12"]
    shorter = "train.epochs=3"
    command = ensemble_command(recipe_file, dataset, output, 1)
    command += ["--variant", "wide", *changes, "--set", shorter]
    before = dict(os.environ)
    tuner = Mock(wraps=tune.Tuner)
    monkeypatch.setattr(tune, "Tuner", tuner)
    # The last figures are shown even if the machine is busy.
    monkeypatch.setattr("trainer.on_ray.progress._ANSWER_S", 60.0)
    assert ray_job.main(command) == 0
    at_once = tuner.call_args.kwargs["tune_config"].max_concurrent_trials
    assert at_once == 2, "one after the other, though both fit"
    (trial,) = tuner.call_args.args
    assert sum(map(sum, map(dict.values, trial._resources.bundles))) < 0.5, "no room for both"
    assert dict(os.environ) == before
    shown = capfd.readouterr()
    assert_ensemble(output, shown.out, ["seed-1", "wide"])
    assert shown.out.lstrip().startswith("Ensemble of 2"), "Tune is to be quiet"
    (line,) = own_lines(shown.err)
    assert_names(line, "finished", "ensemble of 1 of 2", "mAP")
    assert "steps: 36/36" in shown.err

    runs = [output / "seed-1", output / "wide"]
    alone = tmp_path / "alone"
    train(load_recipe(recipe_file, [*changes, shorter]), dataset, str(alone), world=World())
    assert_close_runs(str(runs[1]), str(alone))

    monkeypatch.setattr(ray_tune, "run_recipes", None)
    assert ray_job.main(command) == 0
    assert_ensemble(output, capfd.readouterr().out, ["seed-1", "wide"])
    # The same members, given as finished runs.
    again = tmp_path / "again"
    assert ray_job.main(["ensemble", "--runs", *map(str, runs), "--out", str(again)]) == 0
    for name in ("ensemble.json", "predictions/eval.json"):
        numbers, expected = (storage.read_json(f"{path}/{name}") for path in (again, output))
        folders: dict[str, None] = {"runs": None, "entries": None}
        assert numbers | folders == expected | folders
    assert storage.read_json(f"{output}/ensemble.json")["runs"] == ["seed-1", "wide"]
    assert storage.read_json(f"{again}/ensemble.json")["runs"] == [str(run) for run in runs]


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_failed_trials_are_one_line_each_and_spare_the_others(
    recipe_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkpoints of two seeds are damaged. Without them the same command resumes."""
    dataset = make_prepared(str(tmp_path / "data"))
    output = tmp_path / "runs"
    damaged = []
    for seed in (1, 3):
        recipe, run = with_seed(load_recipe(recipe_file), seed), output / f"seed-{seed}"
        description = describe_run(recipe, dataset, select_training_data(dataset, recipe.data), 1)
        write_run(str(run), description)
        damaged.append(run / "checkpoints" / "step-00000006.pt")
        storage.write_bytes(str(damaged[-1]), b"")
    command = ensemble_command(recipe_file, dataset, output, 1, 2, 3)
    assert ray_job.main(command) == 1
    shown = capfd.readouterr()
    lines = own_lines(shown.err)
    errors = [line for line in lines if line.startswith("ray_job.py: error: ")]
    for line, path in zip(sorted(errors), damaged, strict=True):
        assert_error_line(line, path.parent, "all 1", "damaged")
    others = [line for line in lines if line not in errors]
    assert {line.split()[1] for line in others} >= {"seed-1", "seed-2", "seed-3"}
    assert_ensemble(output, shown.out, ["seed-2"])
    assert is_finished(str(output / "seed-2"))
    finished = (output / "seed-2" / "history.json").stat().st_mtime_ns

    for path in damaged:
        path.unlink()
    assert ray_job.main(command) == 0
    assert_ensemble(output, capfd.readouterr().out, ["seed-1", "seed-2", "seed-3"])
    assert (output / "seed-2" / "history.json").stat().st_mtime_ns == finished


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_members_are_chosen_though_one_failed(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of four train at a time; the chosen ones are a model, which is evaluated elsewhere."""
    output = tmp_path / "runs"
    recipe, broken = with_seed(load_recipe(recipe_file), 3), f"{output}/seed-3"
    write_run(broken, describe_run(recipe, dataset, select_training_data(dataset, recipe.data), 1))
    storage.write_bytes(f"{broken}/checkpoints/step-00000006.pt", b"")
    tuner = Mock(wraps=tune.Tuner)
    monkeypatch.setattr(tune, "Tuner", tuner)
    command = ensemble_command(recipe_file, dataset, output, 1, 2, 3)
    command += ["--variant", "wide", "model.stride_time=12", "--at-once", "2"]
    assert ray_job.main([*command, "--choose", "3", "--choose-on", "train"]) == 1
    shown = capfd.readouterr()
    assert tuner.call_args.kwargs["tune_config"].max_concurrent_trials == 2
    first, *_ = tuner.call_args.kwargs["param_space"]["run"]["grid_search"]
    assert first == broken, "the one with the fewest steps left"
    errors = [line for line in own_lines(shown.err) if "error: " in line]
    assert_error_line(*errors, f"{broken}/checkpoints", "damaged")
    assert_names(shown.err, "--choose-on train", f"{output}/wide", "trained on")
    assert "of 3 on eval" in shown.out
    assert "on train, where they were chosen by mAP" in shown.out
    result = read_result(f"{output}/ensemble.json")
    assert [failed.run for failed in result.failed] == ["seed-3"]
    assert result.choice is not None
    assert len(result.choice.picks) == 3
    ensemble = read_ensemble(str(output))

    assert ray_job.main(["evaluate", str(output), "--split", "train", "--fold", "1"]) == 0
    assert "train-fold1" in capfd.readouterr().out
    expected = sum(
        share * read_predictions(ensemble.members[name].run, "train-fold1").scores
        for name, share in ensemble.weights.items()
    )
    scores = read_predictions(str(output), "train-fold1").scores
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "where", "values"),
    [
        (["--seeds", "1"], "--seeds", ["recipe"]),
        (["--runs", "a", "--set", "train.epochs=2"], "--set", ["recipe"]),
        (["--runs", "a", "--choose", "3"], "--choose", ["--choose-on"]),
        (["--runs", "a", "--choose-on", "dev"], "--choose-on", ["--choose"]),
        (
            ["demo", "--data", "d", "--seeds", "0", "--gpus-per-worker", "0.5", "--workers", "2"],
            "--gpus-per-worker",
            ["0.5", "2 workers", "NCCL", "--workers 1"],
        ),
        (
            ["demo", "--data", "d", "--seeds", "0", "--gpus-per-worker", "0.5", "--no-gpu"],
            "--gpus-per-worker",
            ["--no-gpu"],
        ),
        ([], "ensemble", ["recipe", "--seeds", "--variant", "--runs"]),
        (["demo", "--seeds", "1"], "--data", ["data set"]),
        (["demo", "--data", "d"], "ensemble", ["members", "--seeds", "--variant"]),
        (
            ["demo", "--data", "d", "--seeds", "0", "1", "--set", "train.seed=7"],
            "--set train.seed=7",
            ["--seeds", "train.seed"],
        ),
    ],
)
def test_incompatible_options_are_refused(
    options: list[str],
    where: str,
    values: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.session.connect", None)
    assert ray_job.main(["ensemble", *options, "--out", "runs"]) == 1
    assert_error_line(capsys.readouterr().err, where, *values)


@pytest.mark.parametrize("step", ["ensemble", "cross-validate"])
def test_limits_of_runs_and_gpus_reach_ray_tune(
    step: str,
    recipe_file: str,
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Mock(side_effect=UserError("", "enough"))
    monkeypatch.setattr(ray_tune, "train_unfinished", asked)
    command = [step, *ensemble_command(recipe_file, dataset, tmp_path, 1, 2)[1:]]
    assert ray_job.main([*command, "--at-once", "3", "--gpus-per-worker", "0.25"]) == 1
    _, _, workers = asked.call_args.args
    assert workers == Workers(num=1, use_gpu=True, gpus=0.25)
    assert asked.call_args.kwargs["at_once"] == 3


def test_every_failed_run_is_named(
    recipe_file: str,
    dataset: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The errors themselves may not name their run."""
    runs = [str(tmp_path / f"seed-{seed}") for seed in (1, 2, 3, 10)]
    errors = (
        UserError("", "the disk is full"),
        UserError(f"{runs[1]}/run.json", "damaged"),
        UserError(runs[3], "damaged"),
        UserError("", "full"),
    )
    failures: dict[str, Exception] = dict(zip(runs, errors, strict=True))
    monkeypatch.setattr(ray_tune, "train_unfinished", lambda *_, **__: failures)
    command = ensemble_command(recipe_file, dataset, tmp_path, 1, 2, 3, 10)
    assert ray_job.main(command) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"ray_job.py: error: {runs[0]}: the disk is full",
        f"ray_job.py: error: {runs[1]}/run.json: damaged",
        f"ray_job.py: error: {runs[2]}: {runs[3]}: damaged",
        f"ray_job.py: error: {runs[3]}: full",
    ]
    failures |= {runs[0]: ZeroDivisionError("first"), runs[3]: ZeroDivisionError()}
    with pytest.raises(ZeroDivisionError) as caught:
        ray_job.main(command)
    assert caught.value.__notes__ == [f"This ended the run {runs[3]}"]
    # One that is not explained keeps its traceback, wherever it stands.
    printed = capsys.readouterr().err
    assert printed.startswith("ZeroDivisionError: first\n")
    assert f"This ended the run {runs[0]}\n" in printed


def test_only_the_seed_differs() -> None:
    changed = with_seed(RECIPE, 5)
    assert changed.train == replace(RECIPE.train, seed=5)
    assert replace(changed, train=RECIPE.train).to_json() == RECIPE.to_json()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_ensemble_resumes(
    dataset: PreparedDataset, recipe_file: str, tmp_path: Path
) -> None:
    """Three seeds on two CPUs: some have started, one has not."""
    command = ensemble_command(recipe_file, dataset, tmp_path, 0, 1, 2)
    with started([*command, "--num-cpus", "2"]) as process:
        wait_for_step(process, tmp_path / "seed-0", 2)
        process.kill()
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert "Traceback" not in errors
    assert not (tmp_path / "ensemble.json").exists()

    with started([*command, "--num-cpus", "2"]) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_ensemble(tmp_path, output, ["seed-0", "seed-1", "seed-2"])
    alone = str(tmp_path / "alone")
    train(with_seed(RECIPE, 0), dataset, alone, world=World())
    assert_close_runs(str(tmp_path / "seed-0"), alone)
