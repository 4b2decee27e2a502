"""Comparisons of runs."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from trainer.checkpoints.checkpoint import Checkpoint, load_newest
from trainer.checkpoints.paths import checkpoint_paths
from trainer.checkpoints.progress import EpochResult, Progress
from trainer.recipe.recipe import Recipe
from trainer.run.history import is_finished, read_history
from trainer.run.leaving import LeavingError
from trainer.run.run_folder import read_recipe, read_run
from trainer.run.run_progress import RunProgress
from trainer.scores.predictions import read_predictions
from trainer.training.loop import train
from trainer.training.world import World


def untimed(run: str) -> dict[str, Any]:
    """The run's curves without timings."""
    history = read_history(run)
    timings = {"clips_per_s", "data_wait_share", "train_s", "eval_s"}
    return {
        name: [
            {key: value for key, value in asdict(entry).items() if key not in timings}
            for entry in entries
        ]
        for name, entries in (("steps", history.steps), ("epochs", history.epochs))
    }


def known(value: float | None) -> float:
    """The value, which must not be None."""
    assert value is not None
    return value


def train_losses(run: str) -> list[float]:
    """The mean training loss of each epoch."""
    return [known(epoch.train_loss) for epoch in read_history(run).epochs]


def newest(run: str) -> Checkpoint:
    """The newest checkpoint, which must exist."""
    loaded = load_newest(run)
    assert loaded is not None
    return loaded


def assert_same_run(run: str, other: str) -> None:
    """Curves, weights, optimiser and predictions are equal bit by bit."""
    assert is_finished(run)
    assert untimed(run) == untimed(other)
    loaded, expected = newest(run), newest(other)
    assert loaded.progress.step == expected.progress.step
    for name, value in expected.model.items():
        assert torch.equal(loaded.model[name], value), name
    for number, state in expected.optimiser["state"].items():
        for name, value in state.items():
            assert torch.equal(loaded.optimiser["state"][number][name], value), (number, name)
    scores, other_scores = (read_predictions(path, "eval").scores for path in (run, other))
    np.testing.assert_array_equal(scores, other_scores)


def assert_close_runs(run: str, other: str) -> None:
    """The runs are equal up to the order of float sums."""
    assert is_finished(run)
    curves, expected = untimed(run), untimed(other)
    for name, keys in (("steps", ("loss", "grad_norm")), ("epochs", ("train_loss", "eval_loss"))):
        assert len(curves[name]) == len(expected[name])
        for point, expected_point in zip(curves[name], expected[name], strict=True):
            assert point["step"] == expected_point["step"]
            for key in keys:
                assert point[key] == pytest.approx(expected_point[key], abs=1e-5)
    loaded = newest(run).model
    for name, value in newest(other).model.items():
        kept = torch.ones_like(value, dtype=torch.bool)
        if name.endswith("qkv.bias"):
            # Softmax does not see the keys' bias: its gradient is nothing but rounding errors,
            # which Adam blows up to whole steps.
            kept[len(value) // 3 : 2 * len(value) // 3] = False
        torch.testing.assert_close(loaded[name][kept], value[kept], rtol=0, atol=2e-5)
    scores, other_scores = (read_predictions(path, "eval").scores for path in (run, other))
    np.testing.assert_allclose(scores, other_scores, atol=1e-5)


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of each curve as TensorBoard shows them, without hidden ones."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(point.step, point.value) for point in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_events_match_history(run: Path) -> None:
    """TensorBoard shows each point of the run's curves once."""
    events, history = read_events(run / "tensorboard"), read_history(str(run))
    assert events.keys() >= {"train/grad_norm", "train/clips_per_s"}
    for prefix, points, names in (
        ("train", history.steps, ("loss", "lr")),
        ("eval", history.epochs, ("eval_loss", "mAP", "mAUC", "accuracy")),
    ):
        for name in names:
            shown = events[f"{prefix}/{name}"]
            assert [step for step, _ in shown] == [point.step for point in points]
            values = [value for _, value in shown]
            assert values == pytest.approx([getattr(point, name) for point in points], rel=1e-6)


def assert_losses_of_one_worker(run: str, dataset: str, other: str) -> None:
    """One worker, up to the run's newest checkpoint, has the same curves, up to sums of floats.

    The run may have been stopped at any moment, even before its first checkpoint.
    """
    saved = load_newest(run)
    progress = Progress() if saved is None else saved.progress
    _assert_history(run, progress)
    if saved is None:
        return
    _train_up_to(progress, read_recipe(run, read_run(run)), open_dataset(dataset), other)
    expected = newest(other).progress
    assert (progress.epoch, progress.epoch_step) == (expected.epoch, expected.epoch_step)
    for points, others, name in (
        (progress.steps, expected.steps, "loss"),
        (progress.epochs, expected.epochs, "eval_loss"),
    ):
        assert [point.step for point in points] == [point.step for point in others]
        losses = [known(getattr(point, name)) for point in points]
        assert losses == pytest.approx([known(getattr(point, name)) for point in others], abs=1e-4)


def _assert_history(run: str, progress: Progress) -> None:
    """`history.json` has the curves of the newest checkpoint, or all of the one before.

    It is written after the checkpoint: a worker may have been killed in between.
    """
    history = read_history(run)
    num_points, num_epochs = len(history.steps), len(history.epochs)
    assert [*history.steps] == progress.steps[:num_points], "history.json and checkpoint differ"
    assert [*history.epochs] == progress.epochs[:num_epochs], "history.json and checkpoint differ"
    before = max((int(path[-11:-3]) for path in checkpoint_paths(run)[:-1]), default=0)
    lacking = [point.step for point in progress.steps[num_points:] if point.step <= before]
    # The checkpoint before may be of the end of an epoch, without its result.
    lacking += [result.step for result in progress.epochs[num_epochs:] if result.step < before]
    assert not lacking, f"history.json: lacks points up to the checkpoint of step {before}"


def _train_up_to(place: Progress, recipe: Recipe, dataset: PreparedDataset, run: str) -> None:
    """Train alone up to the place of a checkpoint: before or after the evaluation of an epoch."""
    done = 0

    def report(progress: RunProgress) -> None:
        nonlocal done
        done = progress.step

    def asked() -> str:
        return "far enough" if place.epoch_step and done >= place.step - 1 else ""

    def go_on(result: EpochResult) -> bool:
        return place.epoch_step > 0 or result.epoch < place.epoch - 1

    with suppress(LeavingError):
        train(recipe, dataset, run, world=World(), report=report, asked=asked, go_on=go_on)
