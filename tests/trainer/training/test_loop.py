"""The training loop: it learns, and restarts and ranks change nothing."""

import itertools
import math
import os
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import timm
import torch

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import PassingError, UserError
from tests.support.errors import assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from tests.support.runs import (
    assert_close_runs,
    assert_same_run,
    known,
    newest,
    train_losses,
    untimed,
)
from trainer.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trainer.checkpoints.paths import checkpoint_paths
from trainer.checkpoints.progress import Progress
from trainer.data.batch import Batch
from trainer.data.clip_columns import ClipLabels
from trainer.data.sampler import class_balanced_weights, epoch_order
from trainer.optim.schedule import learning_rate
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import is_finished, read_history, write_history
from trainer.run.run_folder import read_recipe, read_run
from trainer.run.run_progress import RunProgress
from trainer.run.skipped_steps import DivergedError
from trainer.run.writer import take_over
from trainer.scores.predictions import Source, read_predictions
from trainer.training import loop, run_state
from trainer.training.loop import train
from trainer.training.step import Learner, make_step
from trainer.training.world import World

OFTEN: dict[str, Any] = {"log_every_steps": 1, "checkpoint_every_s": 0}
"""A checkpoint after every step."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """29 clips to train on: in batches of 7 the last is a single one."""
    return make_prepared(str(tmp_path_factory.mktemp("data")), num_train=29, max_labels=2)


class Stopped(Exception):  # noqa: N818 (no error of the code)
    """Ends a run in a test."""


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_training_learns(dataset: PreparedDataset, tmp_path: Path, loss: str) -> None:
    run = str(tmp_path)
    train(tiny_recipe(train={"loss": loss}), dataset, run, world=World())
    history = read_history(run)
    losses = train_losses(run)
    assert losses[-1] < 0.8 * losses[0]
    final = storage.read_json(f"{run}/predictions/eval.json")
    assert final["mAP"] > final["chance_mAP"] + 0.4
    assert final["accuracy"] > 0.8
    assert history.epochs[-1].mAP == final["mAP"]
    scores = read_predictions(run, "eval").scores
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-5) == (loss == "ce")


def test_run_folder_holds_all_results(dataset: PreparedDataset, tmp_path: Path) -> None:
    """The formats that the report and others read."""
    run = str(tmp_path)
    recipe = tiny_recipe(data={"fold": 2}, train={"epochs": 2, "log_every_steps": 1})
    reports: list[RunProgress] = []
    train(recipe, dataset, run, world=World(), report=reports.append)

    info = read_run(run)
    assert info.recipe == "tiny"
    assert repr(read_recipe("run", info)) == repr(recipe)
    assert info.seed == recipe.train.seed
    assert info.versions.keys() >= {"python", "torch", "timm", "ray", "ast-ray"}
    saved = newest(run)
    assert info.num_parameters == sum(value.numel() for value in saved.model.values())
    in_fold_1 = dataset.select("train", fold=1).to_pylist()
    num_values = 128 * sum(clip["frames"] for clip in in_fold_1)
    mean = sum(clip["fbank_sum"] for clip in in_fold_1) / num_values
    std = math.sqrt(sum(clip["fbank_sumsq"] for clip in in_fold_1) / num_values - mean**2)
    assert asdict(info.data) == {
        "path": dataset.path,
        "fingerprint": dataset.card.fingerprint,
        "labels": ["low", "middle", "high"],
        "num_train_clips": 20,
        "num_eval_clips": 20,
        "eval_name": "train-fold2",
        "eval_split": "train",
        "eval_fold": 2,
        "num_mels": 128,
        "store": "fbank",
        "mean": pytest.approx(mean, rel=1e-9),
        "std": pytest.approx(std, rel=1e-9),
    }

    history = read_history(run)
    assert history.finished is True
    assert [point.step for point in history.steps] == [1, 2, 3, 4, 5, 6]
    assert [point.epoch for point in history.steps] == [1, 1, 1, 2, 2, 2]
    for point in history.steps:
        assert known(point.grad_norm) > 0
        assert known(point.clips_per_s) > 0
        assert 0 <= known(point.data_wait_share) <= 1
        assert point.num_bad_steps == 0
        # A CPU's memory and peak are not known.
        assert point.peak_memory_bytes is point.mfu is None
    for number, epoch in enumerate(history.epochs, start=1):
        assert (epoch.epoch, epoch.step) == (number, 3 * number)
        assert None not in (epoch.mAP, epoch.mAUC, epoch.accuracy)
        assert epoch.train_s
        assert epoch.eval_s
        own = [known(point.loss) for point in history.steps if point.epoch == number]
        assert epoch.train_loss == pytest.approx(np.average(own, weights=[7, 7, 6]))

    predictions = read_predictions(run, "train-fold2")
    assert predictions.ids == dataset.select("train", fold=2)["id"].to_pylist()
    assert predictions.source == Source(
        loss="bce",
        scores="sigmoid",
        precision="float32",
        checkpoint_step=6,
        data_fingerprint=dataset.card.fingerprint,
    )
    assert len(checkpoint_paths(run)) == 2

    assert [progress.step for progress in reports] == [1, 2, 3, 4, 5, 6]
    assert {progress.num_steps for progress in reports} == {6}
    assert {progress.run for progress in reports} == {run}
    assert reports[2].last_epoch is None
    assert reports[3].last_epoch == history.epochs[0]
    assert reports[3].last_point == history.steps[3]


def test_learning_rate_follows_the_schedule(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        schedule={"warmup_steps": 8, "warmup_every_steps": 2, "decay_after_epochs": [1, 2]},
        train=OFTEN,
    )
    train(recipe, dataset, str(tmp_path), world=World())
    steps = read_history(str(tmp_path)).steps
    assert [point.lr for point in steps] == [
        learning_rate(recipe.schedule, step=point.step - 1, epoch=point.epoch) for point in steps
    ]
    assert [point.lr for point in steps[:4]] == [0, 0, 5e-4, 5e-4]
    assert steps[-1].lr == 5e-4


def test_steps_at_a_rate_of_zero_change_nothing(dataset: PreparedDataset, tmp_path: Path) -> None:
    """The rate of the history is the rate of the step."""
    recipe = tiny_recipe(
        schedule={"warmup_steps": 99, "warmup_every_steps": 99}, train={"epochs": 1}
    )
    train(recipe, dataset, str(tmp_path), world=World())
    saved = newest(str(tmp_path))
    first = loop.make_model(recipe, dataset, fresh=True)
    for name, value in first.state_dict().items():
        assert torch.equal(saved.model[name], value)


def test_another_seed_gives_another_run(dataset: PreparedDataset, tmp_path: Path) -> None:
    losses = []
    for seed in (0, 1):
        run = str(tmp_path / str(seed))
        train(tiny_recipe(train={"epochs": 1, "seed": seed}), dataset, run, world=World())
        losses.append(read_history(run).steps[0].loss)
    assert losses[0] != losses[1]


def test_balanced_runs_train_on_the_balanced_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the classes have 2 of the 40 clips each, and a third of the draws."""
    classes_in_turn = [0] * 18 + [1, 2]
    dataset = make_prepared(str(tmp_path / "data"), classes_in_turn=classes_in_turn)
    recipe = tiny_recipe(
        sampler={"mode": "balanced"}, augment={"mixup_share": 0}, train={"epochs": 2}
    )
    seen: list[int] = []

    def spy(learner: Learner, batch: Batch, lr: float, *, leaves: bool) -> torch.Tensor:
        seen.extend(batch.targets.argmax(dim=1).tolist())
        return make_step(learner, batch, lr, leaves=leaves)

    monkeypatch.setattr(loop, "make_step", spy)
    train(recipe, dataset, str(tmp_path / "run"), world=World())
    labels = np.array(classes_in_turn * 2)
    packed = ClipLabels.of(labels[:, None].tolist())
    weights = class_balanced_weights(packed, 3)
    orders = [epoch_order(seed=0, epoch=e, num_clips=40, weights=weights) for e in (1, 2)]
    assert seen == labels[np.concatenate(orders)].tolist()
    assert np.bincount(seen).min() > 16


# Restarts


def stop_at(step: int) -> Callable[[RunProgress], None]:
    def report(progress: RunProgress) -> None:
        if progress.step == step:
            raise Stopped

    return report


def start(recipe: Recipe, dataset: PreparedDataset, run: str, stop_step: int = -1) -> None:
    train(recipe, dataset, run, world=World(), report=stop_at(stop_step))


@pytest.fixture(scope="module")
def uninterrupted(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = str(tmp_path_factory.mktemp("run"))
    start(tiny_recipe(train=OFTEN), dataset, run)
    return run


def test_run_stopped_after_any_step_resumes_identically(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path
) -> None:
    """6 steps an epoch: stops within epochs, at their ends, and before evaluation."""
    run = str(tmp_path)
    for step in (1, 3, 6, 7, 8, 12, 17, 18):
        with pytest.raises(Stopped):
            start(tiny_recipe(train=OFTEN), dataset, run, step)
        assert not is_finished(run)
    start(tiny_recipe(train=OFTEN), dataset, run)
    assert_same_run(run, uninterrupted)


def test_restart_changes_nothing_in_buckets(dataset: PreparedDataset, tmp_path: Path) -> None:
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    buckets = {"bucket_frames": [56], "bucket_batches": 4}
    recipe = tiny_recipe(sampler=buckets, train={**OFTEN, "epochs": 2})
    start(recipe, dataset, whole)
    with pytest.raises(Stopped):
        start(recipe, dataset, stopped, 8)
    start(recipe, dataset, stopped)
    assert_same_run(stopped, whole)


def stopping_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, except that its n-th call ends the run."""
    calls_left = itertools.count(call - 1, -1)

    def stopping(*arguments: Any, **others: Any) -> Any:
        if next(calls_left) == 0:
            raise Stopped
        return function(*arguments, **others)

    return stopping


@pytest.mark.parametrize(
    ("module", "name", "calls"),
    [
        (loop, "evaluate", [1, 1]),
        (run_state, "save_checkpoint", [1, 5, 6]),
        (run_state, "write_history", [1, 5, 6]),
        (loop, "write_predictions", [1, 1]),
    ],
)
def test_run_stopped_between_two_writes_resumes_identically(
    dataset: PreparedDataset,
    uninterrupted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    name: str,
    calls: list[int],
) -> None:
    """Stops also between the last checkpoint and the results; each start ends at the n-th call."""
    run = str(tmp_path)
    for call in calls:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stopping_at(call, getattr(module, name)))
            with pytest.raises(Stopped):
                start(tiny_recipe(train=OFTEN), dataset, run)
    start(tiny_recipe(train=OFTEN), dataset, run)
    assert_same_run(run, uninterrupted)


def test_later_of_two_processes_in_a_run_folder_continues(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path
) -> None:
    """This can happen on S3, which has no locks, or when a lost worker comes back."""
    run, kept = str(tmp_path), list[str]()

    def begin_another(progress: RunProgress) -> None:
        if progress.step == 8:
            with pytest.raises(Stopped):
                start(tiny_recipe(train=OFTEN), dataset, run, 10)
            kept.extend(checkpoint_paths(run))

    recipe = tiny_recipe(train=OFTEN)
    with refused(run, "another `train`", f"process {os.getpid()}"):
        train(recipe, dataset, run, world=World(), report=begin_another)
    assert checkpoint_paths(run) == kept
    assert not is_finished(run)
    start(recipe, dataset, run)
    assert_same_run(run, uninterrupted)


def test_run_taken_over_at_its_end_writes_no_results(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken over after its last checkpoint. Unfinished files are removed at the start."""
    run = str(tmp_path)
    unfinished = tmp_path / "checkpoints" / ".step-00000001.pt.12345.0123abcd"
    unfinished.parent.mkdir()
    unfinished.touch()

    def write_and_lose(path: str, progress: Progress, *, finished: bool) -> None:
        assert not unfinished.exists()
        write_history(path, progress, finished=finished)
        take_over(path)

    monkeypatch.setattr(run_state, "write_history", write_and_lose)
    with refused(run, "another `train`"):
        start(tiny_recipe(train={"epochs": 1}), dataset, run)
    assert newest(run).progress.epoch == 2
    assert not is_finished(run)
    assert not storage.holds_files(f"{run}/predictions")


def test_run_taken_over_while_writing_is_an_explained_error(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process removes unfinished files, so that writing fails."""

    def lose(path: str, saved: Checkpoint) -> None:
        take_over(path)
        raise UserError("", "cannot be written")

    monkeypatch.setattr(run_state, "save_checkpoint", lose)
    with refused(tmp_path, "another `train`"):
        start(tiny_recipe(train={"epochs": 1}), dataset, str(tmp_path))


def test_checkpoint_written_in_background_is_consistent(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch's checkpoint is written only while the second epoch trains."""
    go_on = threading.Event()
    moments: list[tuple[int, float]] = []

    def save_late(path: str, saved: Checkpoint) -> str:
        assert go_on.wait(60)
        moments.append((saved.progress.step, float(saved.optimiser["state"][0]["step"])))
        return save_checkpoint(path, saved)

    def let_go(progress: RunProgress) -> None:
        if progress.epoch == 2:
            go_on.set()

    monkeypatch.setattr(run_state, "save_checkpoint", save_late)
    train(tiny_recipe(train={"epochs": 2}), dataset, str(tmp_path), world=World(), report=let_go)
    assert moments == [(6, 6), (12, 12)]


def test_missed_checkpoints_do_not_end_a_run(
    dataset: PreparedDataset,
    uninterrupted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The last checkpoint is required; a restart writes it."""
    run = str(tmp_path)
    failing = {2, 6, 18}

    def save_or_not(run_path: str, saved: Checkpoint) -> str:
        if saved.progress.step in failing:
            raise PassingError("", "no answer")
        return save_checkpoint(run_path, saved)

    monkeypatch.setattr(run_state, "save_checkpoint", save_or_not)
    with refused("", "no answer", type=PassingError):
        start(tiny_recipe(train=OFTEN), dataset, run)
    warnings = [record for record in caplog.records if record.name == run_state.__name__]
    assert [record.getMessage().rpartition(" ")[2] for record in warnings] == ["2", "6"]
    assert newest(run).progress.step == 17
    failing.clear()
    start(tiny_recipe(train=OFTEN), dataset, run)
    assert_same_run(run, uninterrupted)


def test_epoch_restarts_without_intermediate_checkpoints(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe(train={"epochs": 2})
    straight, run = str(tmp_path / "straight"), str(tmp_path / "run")
    start(recipe, dataset, straight)
    with pytest.raises(Stopped):
        start(recipe, dataset, run, 5)
    assert checkpoint_paths(run) == []
    with pytest.raises(Stopped):
        start(recipe, dataset, run, 11)
    saved = newest(run)
    assert saved.progress.step == 6
    assert read_history(run).finished is False
    start(recipe, dataset, run)
    assert_same_run(run, straight)


def test_logged_means_are_unaffected_by_a_restart(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(train={"epochs": 2, "log_every_steps": 4, "checkpoint_every_s": 0})
    straight, run = str(tmp_path / "straight"), str(tmp_path / "run")
    start(recipe, dataset, straight)
    for step in (3, 5, 11):
        with pytest.raises(Stopped):
            start(recipe, dataset, run, step)
    start(recipe, dataset, run)
    assert [point.step for point in read_history(run).steps] == [4, 6, 10, 12]
    assert_same_run(run, straight)


def test_damaged_checkpoint_costs_only_steps_since_the_previous(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path
) -> None:
    run = str(tmp_path)
    with pytest.raises(Stopped):
        start(tiny_recipe(train=OFTEN), dataset, run, 9)
    path = checkpoint_paths(run)[-1]
    storage.write_bytes(path, storage.read_bytes(path)[:5000])
    start(tiny_recipe(train=OFTEN), dataset, run)
    assert_same_run(run, uninterrupted)


def test_finished_run_is_left_unchanged(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path
) -> None:
    before = untimed(uninterrupted)
    start(tiny_recipe(train=OFTEN), dataset, uninterrupted, stop_step=1)
    assert untimed(uninterrupted) == before
    assert is_finished(uninterrupted)


def test_pretrained_weights_are_not_needed_to_resume(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    backbone = timm.create_model("deit_tiny_distilled_patch16_224.fb_in1k", num_classes=0)
    torch.save(backbone.state_dict(), weights)
    recipe = tiny_recipe(
        model={
            "pretrained": True,
            "weights_file": str(weights),
            "patch_frequency": 16,
            "stride_frequency": 16,
        },
        train={"epochs": 2},
    )
    run = str(tmp_path / "run")
    with pytest.raises(Stopped):
        start(recipe, dataset, run, 7)
    weights.unlink()
    start(recipe, dataset, run)
    assert is_finished(run)


def test_patchout_is_unaffected_by_a_restart(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        model={"patchout_time": 1, "patchout_share": 0.2}, train=OFTEN | {"epochs": 2}
    )
    straight, run, plain = (str(tmp_path / name) for name in ("straight", "run", "plain"))
    start(recipe, dataset, straight)
    with pytest.raises(Stopped):
        start(recipe, dataset, run, 5)
    start(recipe, dataset, run)
    assert_same_run(run, straight)
    start(tiny_recipe(train=OFTEN | {"epochs": 2}), dataset, plain)
    assert untimed(plain) != untimed(run)


# Ranks


def train_rank(
    world: World, document: dict[str, Any], data: str, runs: list[str], stop_step: int
) -> None:
    for run in runs:
        recipe = make_recipe("tiny", document, where="test")
        train(recipe, open_dataset(data), run, world=world, report=stop_at(stop_step))


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_trains_alike(
    multi_label: PreparedDataset, tmp_path: Path, world_size: int
) -> None:
    """Batches of 7, the last of 1: ranks get unequal shares, padding, or no clip.

    A second run is started by one rank and resumed by several.
    """
    recipe = tiny_recipe(train=OFTEN | {"epochs": 2})
    alone, together, taken_over = (str(tmp_path / name) for name in ("1", "n", "1-n"))
    start(recipe, multi_label, alone)
    with pytest.raises(Stopped):
        start(recipe, multi_label, taken_over, 3)
    runs = [together, taken_over]
    run_ranks(world_size, train_rank, recipe.to_json(), multi_label.path, runs, -1)
    assert len(read_history(together).steps) == 10
    assert_close_runs(together, alone)
    assert_close_runs(taken_over, alone)


def train_in_parts(world: World, documents: dict[str, dict[str, Any]], data: str) -> None:
    for run, document in documents.items():
        train_rank(world, document, data, [run], -1)


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_micro_batch_size_changes_nothing(
    dataset: PreparedDataset, tmp_path: Path, world_size: int
) -> None:
    """54 steps: each rank's share in one micro-batch, and in two of unequal size."""
    changes = {"epochs": 9, "log_every_steps": 1}
    alone = str(tmp_path / "alone")
    start(tiny_recipe(train=changes), dataset, alone)
    share = -(-7 // world_size)
    documents = {
        str(tmp_path / str(size)): tiny_recipe(train=changes | {"micro_batch_size": size}).to_json()
        for size in (0, -(-share // 2))
    }
    run_ranks(world_size, train_in_parts, documents, dataset.path)
    expected = [point["loss"] for point in untimed(alone)["steps"]]
    assert len(expected) == 54
    for run in documents:
        losses = [point["loss"] for point in untimed(run)["steps"]]
        assert losses[:20] == pytest.approx(expected[:20], abs=1e-6)
        # Later, training has amplified differences of rounding.
        assert losses == pytest.approx(expected, abs=2e-4)


def train_in_own_folder(world: World, document: dict[str, Any], data: str, runs: list[str]) -> None:
    with refused(runs[world.rank], [3, 0]):
        train_rank(world, document, data, [runs[world.rank]], -1)


def test_ranks_with_separate_run_folders_are_refused(
    multi_label: PreparedDataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe(train=OFTEN | {"epochs": 1})
    runs = [str(tmp_path / name) for name in ("first", "second")]
    with pytest.raises(Stopped):
        start(recipe, multi_label, runs[0], 3)
    run_ranks(2, train_in_own_folder, recipe.to_json(), multi_label.path, runs)


# Runs that fail


def test_nonfinite_loss_ends_the_run(
    dataset: PreparedDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run resumes once from a checkpoint and then ends."""
    run = str(tmp_path)
    recipe = tiny_recipe(
        schedule={"lr": 1e6, "warmup_steps": 0}, train=OFTEN | {"max_bad_steps": 3}
    )
    with refused(run, "3 skipped", "schedule.lr", type=DivergedError, remedy="--out"):
        start(recipe, dataset, run)
    [warning] = [line for line in caplog.text.splitlines() if "resuming" in line]
    assert_names(warning, run, "3 skipped", "step 1")
    assert len(checkpoint_paths(run)) == 1
    for path in checkpoint_paths(run):
        model = torch.load(path, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in model.values())


def test_infinite_gradient_ends_the_run(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is finite, and there is no checkpoint to resume from."""
    run = str(tmp_path)
    monkeypatch.setattr("trainer.training.step.gradient_norm", lambda model: torch.tensor(math.inf))
    with refused(run, "norm inf", "step 2", "epoch 1", "2 skipped", type=DivergedError):
        start(tiny_recipe(train=OFTEN | {"max_bad_steps": 2}), dataset, run)
    assert checkpoint_paths(run) == []


def test_masks_larger_than_the_input_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    with refused("augment.time_mask", "model.num_frames", 64, "got 99"):
        start(tiny_recipe(augment={"time_mask": 99}), dataset, str(tmp_path))
    assert storage.list_files(str(tmp_path)) == []
