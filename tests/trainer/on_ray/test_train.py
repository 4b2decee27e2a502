"""Training on Ray Train: equal to runs without it, after kills and in S3 too."""

import logging
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.terminal import log
from tests.support.errors import assert_error_line, assert_names, assert_notes
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.runs import assert_close_runs, assert_events_match_history, newest
from tests.support.steps import own_lines, started, wait_for_step
from trainer.checkpoints.paths import checkpoint_paths
from trainer.commands import evaluate as evaluate_step
from trainer.commands import train as train_step
from trainer.data.clips import select_clips
from trainer.data.loader import Loader
from trainer.data.settings import LoaderSettings
from trainer.on_ray import train as ray_train
from trainer.on_ray import worker_run
from trainer.on_ray.progress import progress_board
from trainer.on_ray.tune import unfinished
from trainer.on_ray.worker_start import traced
from trainer.recipe.settings import TrainSettings
from trainer.run.history import is_finished, read_history
from trainer.run.run_folder import read_run
from trainer.run.run_progress import RunProgress
from trainer.run.writer import alone_in
from trainer.scores.predictions import Source, predictions_path, read_predictions
from trainer.training.evaluation import evaluate
from trainer.training.loop import make_model, train
from trainer.training.world import World

RECIPE = tiny_recipe(
    augment={"crop": "random"},
    train={"epochs": 4, "log_every_steps": 1, "checkpoint_every_s": 0},
)
"""24 steps, each followed by a checkpoint."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_recipe(tmp_path_factory.mktemp("recipe") / "tiny.toml", RECIPE))


@pytest.fixture(scope="module")
def without_ray(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = str(tmp_path_factory.mktemp("run"))
    train(RECIPE, dataset, run, world=World())
    return run


def train_command(recipe_file: str, dataset: PreparedDataset, run: str, *more: str) -> list[str]:
    return ["train", recipe_file, "--data", dataset.path, "--out", run, *more]


# On two CPUs


@pytest.mark.usefixtures("session")
def test_two_workers_equal_the_loop_and_write_into_a_bucket(
    dataset: PreparedDataset,
    recipe_file: str,
    without_ray: str,
    s3: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = f"{s3}/runs/one"
    command = train_command(recipe_file, dataset, run, "--workers", "2")
    # The last figures are shown even if the machine is busy.
    monkeypatch.setattr("trainer.on_ray.progress._ANSWER_S", 60.0)
    assert ray_job.main(command) == 0
    shown = capfd.readouterr()
    assert_close_runs(run, without_ray)
    assert "mAP" in shown.out
    assert "steps: 24/24" in shown.err
    assert own_lines(shown.err) == []

    monkeypatch.setattr(ray_train, "run_training", None)
    assert ray_job.main(command) == 0
    assert f"{run}: already finished" in capfd.readouterr().out


@pytest.mark.usefixtures("session")
def test_quiet_and_verbose_reach_the_workers(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "quiet"
    assert ray_job.main(train_command(recipe_file, dataset, str(run), "--quiet")) == 0
    printed = capfd.readouterr()
    assert "mAP" in printed.out
    for word in ("steps:", "note:", "debug:"):
        assert word not in printed.err

    run = tmp_path / "verbose"
    assert ray_job.main(train_command(recipe_file, dataset, str(run), "--verbose")) == 0
    stderr, deadline = "", time.monotonic() + 60
    # Ray forwards the output of workers with a delay.
    while f"debug: {run}/checkpoints/step-00000024.pt: written" not in stderr:
        assert time.monotonic() < deadline, stderr
        stderr += capfd.readouterr().err
        time.sleep(0.1)


@pytest.mark.usefixtures("session")
def test_evaluate_scores_the_held_out_clips_by_default(
    without_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = Path(predictions_path(without_ray, "eval"))
    before = read_predictions(without_ray, "eval")
    path.unlink()
    assert ray_job.main(["evaluate", without_ray]) == 0
    printed = capfd.readouterr()
    assert "on eval" in printed.out
    assert own_lines(printed.err) == []
    again = read_predictions(without_ray, "eval")
    assert again.ids == before.ids
    np.testing.assert_allclose(again.scores, before.scores, atol=1e-6)


@pytest.mark.usefixtures("session")
def test_evaluate_scores_another_split_with_the_last_checkpoint(
    dataset: PreparedDataset, without_ray: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ray_job.main(["evaluate", without_ray, "--split", "train", "--fold", "2"]) == 0
    printed = capfd.readouterr()
    assert "on train-fold2" in printed.out
    assert_notes(own_lines(printed.err), ["all", 20])
    predictions = read_predictions(without_ray, "train-fold2")
    model = make_model(RECIPE, dataset, fresh=False)
    model.load_state_dict(newest(without_ray).model)
    clips, data = select_clips(dataset, "train", 2), read_run(without_ray).data
    expected = evaluate(
        model,
        Loader(clips, LoaderSettings(), num_frames=64),
        mean=data.mean,
        std=data.std,
        settings=TrainSettings(batch_size=7),
        world=World(),
        run_path=without_ray,
    )
    assert predictions.ids == list(clips.ids)
    np.testing.assert_allclose(predictions.scores, expected.scores, atol=1e-6)
    assert predictions.source == Source(
        loss="bce",
        scores="sigmoid",
        precision="float32",
        checkpoint_step=24,
        data_fingerprint=dataset.card.fingerprint,
    )
    metrics = storage.read_json(f"{without_ray}/predictions/train-fold2.json")
    assert metrics["mAP"] == pytest.approx(expected.metrics.mAP)


LONG = replace(RECIPE, train=replace(RECIPE.train, epochs=50))
"""300 steps: a run that something shall happen to does not end before."""


def kill_the_first_worker(run: Path, over: threading.Event) -> None:
    """Kills it once it has written a checkpoint; TensorBoard's files name its process."""
    while not checkpoint_paths(str(run)):
        if over.wait(0.01):
            return
    (events,) = (run / "tensorboard").iterdir()
    os.kill(int(events.name.split(".")[-2]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_killed_worker_is_restarted(
    dataset: PreparedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe_file = str(write_recipe(tmp_path / "long.toml", LONG))
    run, without_loss = tmp_path / "run", str(tmp_path / "without-loss")
    over = threading.Event()
    killer = threading.Thread(target=kill_the_first_worker, args=(run, over))
    killer.start()
    try:
        assert ray_job.main(train_command(recipe_file, dataset, str(run))) == 0
    finally:
        over.set()
        killer.join()
    shown = ""
    deadline = time.monotonic() + 60
    while not re.search("warning: .*worker 0 failed .*; restarting from", shown):
        # Ray forwards the output of its processes with a delay.
        assert time.monotonic() < deadline, shown
        shown += capfd.readouterr().err
        time.sleep(0.1)
    assert len(list((run / "tensorboard").iterdir())) == 2
    train(LONG, dataset, without_loss, world=World())
    assert_close_runs(str(run), without_loss)
    assert_events_match_history(run)


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_user_error_in_one_worker_ends_the_run_with_one_line(
    recipe_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other worker waits in the middle of a step; neither is restarted."""
    dataset = make_prepared(str(tmp_path / "data"))
    shard = f"{dataset.path}/shards/train-00000.tar"
    last = dataset.select("train").to_pylist()[-1]
    storage.write_bytes(shard, storage.read_bytes(shard)[: last["offset_bytes"] + 1])
    run = tmp_path / "run"
    command = train_command(recipe_file, dataset, str(run), "--workers", "2")
    assert ray_job.main(command) == 1
    [line] = own_lines(capfd.readouterr().err)
    assert_error_line(line, shard, "clip 'train/39'", "prepare")
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert not is_finished(str(run))


@pytest.mark.usefixtures("session")
def test_workers_that_do_not_fit_are_refused(
    dataset: PreparedDataset, recipe_file: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    for options in (["--workers", "3"], ["--cpus-per-worker", "3"], ["--gpu"]):
        assert ray_job.main(train_command(recipe_file, dataset, run, *options)) == 1
        error = capfd.readouterr().err
        assert_error_line(error, "", "1 node", "2 CPUs", "0 GPUs", "--workers")
        assert error.count("\n") == 1
    assert not storage.exists(f"{run}/run.json")


@pytest.mark.usefixtures("session")
def test_progress_takes_no_cpu_and_survives_its_board() -> None:
    """An exception of its thread would fail this test."""
    before = set(threading.enumerate())
    with progress_board(1) as board:
        started = set(threading.enumerate()) - before
        (thread,) = (other for other in started if other.name == "progress")
        progress = RunProgress(
            run="/a/run",
            step=1,
            num_steps=2,
            epoch=1,
            lr=0.1,
            num_bad_steps=0,
            last_point=None,
            last_epoch=None,
        )
        ray.get(board.put.remote(progress))
        # Ray counts CPUs now and then, and workers of earlier tests may still be ending.
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU") != 2:
            assert time.monotonic() < deadline, "a CPU is taken"
            time.sleep(0.1)
        ray.kill(board)
        thread.join(timeout=60)
        assert not thread.is_alive(), "it waits for a board that is gone"


# Without a session


def test_worker_error_carries_its_traceback() -> None:
    def worker(config: dict[str, Any]) -> None:
        raise ZeroDivisionError(config["what"])

    with pytest.raises(ZeroDivisionError) as caught:
        traced(worker, (), logging.INFO, {"what": "nothing"})
    (note,) = pickle.loads(pickle.dumps(caught.value)).__notes__
    assert 'raise ZeroDivisionError(config["what"])' in note


def test_invalid_commands_are_refused_before_ray_starts(
    dataset: PreparedDataset,
    recipe_file: str,
    without_ray: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.session.connect", None)
    free, taken = str(tmp_path / "run"), without_ray
    typo = ("--set", "model.backbone=deit_tiny_distilled_patch16_242")
    gone = ("--set", "model.pretrained=true", "--set", "model.weights_file=/gone.pth")
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    (sounds / "dog.wav").touch()
    shorter, fold = ("--set", "train.epochs=3"), ("--set", "data.fold=9")
    mask = ("--set", "augment.time_mask=99")
    data = str(dataset.path)
    for command, where, values in (
        (train_command(recipe_file, dataset, taken, *shorter), taken, ["train.epochs = 4", 3]),
        (train_command(recipe_file, dataset, free, *fold), data, ["no fold 9"]),
        (train_command(recipe_file, dataset, free, *mask), "augment.time_mask", ["got 99"]),
        (train_command(recipe_file, dataset, free, *gone), "model.weights_file", ["/gone.pth"]),
        (
            train_command(recipe_file, dataset, free, *typo),
            "model.backbone",
            ["did you mean deit_tiny_distilled_patch16_224?"],
        ),
        (train_command(recipe_file, dataset, str(sounds)), str(sounds), ["dog.wav"]),
        (
            ["train", recipe_file, "--data", str(tmp_path), "--out", free],
            str(tmp_path),
            ["card.json"],
        ),
        (["evaluate", free, "--split", "eval"], free, ["run.json"]),
        (["evaluate", taken, "--split", "test"], data, ["no split 'test'"]),
        (["evaluate", taken, "--split", "eval", "--fold", "1"], data, ["no fold 1"]),
        (["evaluate", taken, "--split", "eval", "--weights", "ema"], taken, ["'ema'"]),
    ):
        assert ray_job.main(command) == 1
        error = capsys.readouterr().err
        assert_error_line(error, where, *values)
        assert error.count("\n") == 1


def test_warnings_are_printed_once(
    dataset: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.set_up(logging.INFO)
    recipe = replace(RECIPE, train=replace(RECIPE.train, batch_size=41))
    recipes = {str(tmp_path / name): recipe for name in ("a", "b")}
    assert unfinished(recipes, dataset.path) == recipes
    warnings = capsys.readouterr().err.splitlines()
    [warning] = [line for line in warnings if "train.batch_size" in line]
    assert_names(warning, 40)
    recipes[str(tmp_path / "c")] = RECIPE
    assert unfinished(recipes, dataset.path) == recipes
    assert "warning: a, b: train.batch_size: " in capsys.readouterr().err


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in this process, without Ray."""
    for step in (evaluate_step, train_step):
        monkeypatch.setattr(step, "session", lambda arguments, **_: nullcontext())
    monkeypatch.setattr(ray_train, "fit_workers", lambda workers, **_: (workers, 1))
    monkeypatch.setattr(ray_train, "check_shared", lambda paths: None)
    monkeypatch.setattr(ray_train, "_fit", lambda worker, config, *_, **__: worker(config))
    monkeypatch.setattr(worker_run, "_world", lambda threads: World())
    board = SimpleNamespace(is_stopping=SimpleNamespace(remote=lambda: False))
    reporter = SimpleNamespace(report=lambda progress: None, asked=lambda: "")
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(worker_run, "reason", lambda: "")
    monkeypatch.setattr(worker_run, "run_gauges", lambda run_path: nullcontext())
    monkeypatch.setattr(worker_run, "Reporter", lambda board: reporter)
    monkeypatch.setattr(ray_train, "progress_board", lambda num_runs: nullcontext(board))


@pytest.mark.usefixtures("here")
def test_scores_on_other_data_get_their_own_name(
    dataset: PreparedDataset, without_ray: str, tmp_path: Path
) -> None:
    before = storage.read_bytes(predictions_path(without_ray, "eval"))
    other = make_prepared(str(tmp_path / "other"), seed=1)
    for data in (other, make_prepared(str(tmp_path / "moved"))):
        command = ["evaluate", without_ray, "--split", "eval", "--data", data.path]
        assert ray_job.main(command) == 0
    fingerprint = other.card.fingerprint
    predictions = read_predictions(without_ray, f"eval-of-other-{fingerprint[:8]}")
    assert predictions.source.data_fingerprint == fingerprint
    # The same data at another path count as the same data.
    assert storage.read_bytes(predictions_path(without_ray, "eval")) == before
    names = [path.name for path in Path(without_ray, "predictions").iterdir()]
    assert not any("moved" in name for name in names)


def test_run_folder_in_use_is_refused_before_ray_starts(
    dataset: PreparedDataset,
    recipe_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delattr(train_step, "session")
    run = str(tmp_path / "run")
    with alone_in(run):
        assert ray_job.main(train_command(recipe_file, dataset, run)) == 1
    assert_error_line(capsys.readouterr().err, run, "another process", "--out")
    assert not storage.exists(f"{run}/run.json")


@pytest.mark.usefixtures("here")
def test_imported_run_can_be_a_member(
    dataset: PreparedDataset, without_ray: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imported, output = str(tmp_path / "imported"), str(tmp_path / "ensemble")
    assert ray_job.main(["import", without_ray, "--data", dataset.path, "--out", imported]) == 0
    command = ["ensemble", "--runs", without_ray, imported, "--out", output]
    assert ray_job.main(command) == 1
    assert_error_line(capsys.readouterr().err, imported, "'eval'", "`evaluate`")
    evaluate_imported = ["evaluate", imported, "--split", "eval"]
    assert ray_job.main([*evaluate_imported, "--precision", "bfloat16"]) == 0
    assert "warning: --precision: bfloat16" in capsys.readouterr().err
    assert read_predictions(imported, "eval").source.precision == "bfloat16"
    assert ray_job.main([*evaluate_imported, "--scores", "softmax"]) == 0
    softmax = read_predictions(imported, "eval")
    assert softmax.source.scores == "softmax"
    np.testing.assert_allclose(softmax.scores.sum(axis=1), 1, atol=1e-5)
    assert ray_job.main(command) == 1
    names = f"{Path(without_ray).name} and imported"
    assert_error_line(capsys.readouterr().err, names, "sigmoid and softmax", "--scores sigmoid")
    assert ray_job.main(evaluate_imported) == 0
    assert ray_job.main(command) == 0
    scores, expected = (read_predictions(run, "eval").scores for run in (output, without_ray))
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.usefixtures("here")
def test_missing_results_of_a_finished_run_are_regenerated(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    """Also if only the weights of the selected epoch are kept."""
    recipe = replace(RECIPE, train=replace(RECIPE.train, select_by="mAP"))
    run, file = str(tmp_path / "run"), write_recipe(tmp_path / "tiny.toml", recipe)
    command = ["train", str(file), "--data", dataset.path, "--out", run]
    assert ray_job.main(command) == 0
    history, best = read_history(run), read_predictions(run, "eval-best").scores
    damages: list[Callable[[], None]] = [
        lambda: storage.write_bytes(f"{run}/history.json", b"{}"),
        lambda: storage.remove(f"{run}/predictions/eval.json"),
    ]
    for damage in damages:
        damage()
        storage.remove(predictions_path(run, "eval-best"))
        assert ray_job.main(command) == 0
        assert read_history(run) == history
        assert np.array_equal(read_predictions(run, "eval-best").scores, best)


@pytest.mark.usefixtures("here")
def test_scores_of_other_weights_get_their_own_name(
    dataset: PreparedDataset,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(tmp_path)
    train(
        replace(RECIPE, train=replace(RECIPE.train, select_by="mAP")), dataset, run, world=World()
    )
    (tmp_path / "predictions" / "eval.json").unlink()
    expected = read_predictions(run, "eval-best")
    storage.remove(predictions_path(run, "eval-best"))
    # Evaluating them needs no checkpoint.
    for path in checkpoint_paths(run):
        storage.remove(path)
    assert ray_job.main(["evaluate", run, "--split", "eval", "--weights", "best"]) == 0
    predictions = read_predictions(run, "eval-best")
    assert np.array_equal(predictions.scores, expected.scores)
    assert predictions.source == expected.source
    assert f"best, of epoch {predictions.source.epoch}" in capsys.readouterr().out
    assert not (tmp_path / "predictions" / "eval.json").exists()


# Processes that are killed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_same_command_resumes_after_ctrl_c_and_kill(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    """A longer run: it takes a moment until Ctrl-C has ended it."""
    recipe_file = str(write_recipe(tmp_path / "tiny.toml", LONG))
    run = tmp_path / "run"
    options = ["--workers", "2", "--num-cpus", "2"]
    command = train_command(recipe_file, dataset, str(run), *options)
    with started(command) as process:
        wait_for_step(process, run, 1)
        # The terminal sends it to all processes of the group.
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate()
    assert process.returncode == 130
    assert any(line.startswith("interrupted; ") for line in errors.splitlines())
    assert "Traceback" not in errors

    with started(command) as process:
        wait_for_step(process, run, newest(str(run)).progress.step + 2)
        process.kill()
    assert not is_finished(str(run))

    with started(command) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "mAP" in output
    assert len(list((run / "tensorboard").iterdir())) == 3
    # test_loop checks that a resumed run equals an uninterrupted one bit by bit.
    assert is_finished(str(run))
    assert newest(str(run)).progress.step == 300
    assert_events_match_history(run)
