"""Comparisons of runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.dataset.prepared import open_dataset
from trainer.checkpoints.checkpoint import Checkpoint, load_newest
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
            assert torch.equal(loaded.optimiser["state"][number][name], value)
    scores, other_scores = (read_predictions(path, "eval").scores for path in (run, other))
    assert np.array_equal(scores, other_scores)


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


def assert_losses_of_one_worker(run: str, dataset: str, last_step: int, other: str) -> None:
    """One worker, up to the same step, has the same curve as the run, up to sums of floats."""
    done = 0

    def report(progress: RunProgress) -> None:
        nonlocal done
        done = progress.step

    def asked() -> str:
        return "far enough" if done >= last_step - 1 else ""

    recipe = read_recipe(run, read_run(run))
    with pytest.raises(LeavingError):
        train(recipe, open_dataset(dataset), other, world=World(), report=report, asked=asked)
    history, expected = read_history(run), read_history(other)
    for points, others, name in (
        (history.steps, expected.steps, "loss"),
        (history.epochs, expected.epochs, "eval_loss"),
    ):
        assert [point.step for point in points] == [point.step for point in others]
        losses = [known(getattr(point, name)) for point in points]
        assert losses == pytest.approx([known(getattr(point, name)) for point in others], abs=1e-4)
