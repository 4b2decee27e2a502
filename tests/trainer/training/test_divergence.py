"""Bad steps are skipped by all ranks, counted and named; a run resumes once and then ends."""

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.shards.tar import Fbank
from tests.support.errors import assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from tests.support.runs import assert_same_run, known, newest, train_losses, untimed
from trainer.checkpoints.paths import checkpoint_paths
from trainer.data.augment import augment_batch
from trainer.data.clip_reader import ClipReader, IntArray
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.run.skipped_steps import DivergedError
from trainer.training import loop
from trainer.training.divergence import is_bad
from trainer.training.loop import train
from trainer.training.world import World

OFTEN: dict[str, Any] = {"log_every_steps": 1, "checkpoint_every_s": 0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def uninterrupted(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = str(tmp_path_factory.mktemp("run"))
    train(tiny_recipe(train=OFTEN), dataset, run, world=World())
    return run


def bad_steps(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "divergence.jsonl").read_text().splitlines()]


def failing_at(*calls: int) -> Callable[..., Tensor]:
    """The augmentation, but the batches of these calls, from 1, are not numbers."""
    num_calls = 0

    def failing(*arguments: Any, **others: Any) -> Tensor:
        nonlocal num_calls
        num_calls += 1
        x = augment_batch(*arguments, **others)
        return x * math.nan if num_calls in calls else x

    return failing


@pytest.mark.parametrize(
    ("loss", "norm", "max_norm", "bad"),
    [
        (1.0, 2.0, 0.0, False),
        (1.0, 2.0, 2.0, False),
        (1.0, 2.5, 2.0, True),
        (1.0, 1e30, 0.0, False),
        (math.nan, 2.0, 0.0, True),
        (math.inf, 2.0, 3.0, True),
        (1.0, math.nan, 3.0, True),
        (1.0, math.inf, 0.0, True),
    ],
)
def test_nonfinite_or_excessive_steps_are_bad(
    loss: float, norm: float, max_norm: float, bad: bool
) -> None:
    assert bool(is_bad(torch.tensor(loss), torch.tensor(norm), max_norm)) is bad


def test_bad_step_changes_nothing_and_is_recorded(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    reports: list[RunProgress] = []
    monkeypatch.setattr(loop, "augment_batch", failing_at(4))
    recipe = tiny_recipe(train={"log_every_steps": 2, "epochs": 2})
    train(recipe, dataset, run, world=World(), report=reports.append)
    (entry,) = bad_steps(run)
    assert (entry["step"], entry["epoch"], entry["loss"]) == (4, 1, "nan")
    assert len(entry["ids"]) == len(entry["partner_ids"]) == 7
    assert set(entry["ids"]) <= set(dataset.select("train")["id"].to_pylist())
    saved = newest(run)
    assert {int(state["step"]) for state in saved.optimiser["state"].values()} == {11}
    assert all(torch.isfinite(value).all() for value in saved.model.values())
    history = read_history(run)
    assert [point.num_bad_steps for point in history.steps] == [0, 1, 0, 0, 0, 0]
    assert history.steps[1].grad_norm is None
    assert all(math.isfinite(known(point.loss)) for point in history.steps)
    assert (reports[3].num_bad_steps, reports[-1].num_bad_steps) == (1, 1)


def test_epoch_without_a_good_step_has_no_loss(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "augment_batch", failing_at(*range(1, 7)))
    train(tiny_recipe(train={"epochs": 2}), dataset, str(tmp_path), world=World())
    first, second = read_history(str(tmp_path)).epochs
    assert first.train_loss is None
    assert known(second.train_loss) > 0


def test_bad_steps_are_counted_across_the_end_of_an_epoch(
    dataset: PreparedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Training resumes from the checkpoint at the end of the epoch."""
    run = str(tmp_path)
    monkeypatch.setattr(loop, "augment_batch", failing_at(11, 12, 13))
    train(tiny_recipe(train=OFTEN | {"max_bad_steps": 3}), dataset, run, world=World())
    assert_names(caplog.text, run, "3 skipped", "step 12")
    assert newest(run).progress.has_gone_back
    assert [entry["step"] for entry in bad_steps(run)] == [11, 12, 13]


def test_resuming_within_an_epoch_loses_nothing(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    monkeypatch.setattr(loop, "augment_batch", failing_at(8, 9, 10))
    train(tiny_recipe(train=OFTEN | {"max_bad_steps": 3}), dataset, run, world=World())
    assert_same_run(run, uninterrupted)
    assert [entry["step"] for entry in bad_steps(run)] == [8, 9, 10]


def test_learning_rate_is_scaled_after_divergence(
    dataset: PreparedDataset, uninterrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = str(tmp_path)
    monkeypatch.setattr(loop, "augment_batch", failing_at(9))
    changes = {"max_bad_steps": 1, "lr_after_divergence": 0.25}
    train(tiny_recipe(train=OFTEN | changes), dataset, run, world=World())
    rates, expected = ([p["lr"] for p in untimed(path)["steps"]] for path in (run, uninterrupted))
    assert rates[:8] == expected[:8]
    assert rates[8:] == [0.25 * rate for rate in expected[8:]]


def diverges(
    run: str | Path, *values: str
) -> AbstractContextManager[pytest.ExceptionInfo[Exception]]:
    """Expect a run that ends as it diverged near the given step."""
    return refused(run, *values, "schedule.lr", type=DivergedError, remedy="--out")


def test_second_divergence_ends_the_run(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This also holds after a restart."""
    run = str(tmp_path)
    recipe = tiny_recipe(train=OFTEN | {"max_bad_steps": 2})
    # The fourth and fifth step, and after resuming the first two steps.
    monkeypatch.setattr(loop, "augment_batch", failing_at(4, 5, 6, 7))
    with diverges(run, "step 5", "2 skipped"):
        train(recipe, dataset, run, world=World())
    assert newest(run).progress.step == 3
    monkeypatch.undo()
    monkeypatch.setattr(loop, "augment_batch", failing_at(1, 2))
    with diverges(run, "step 5", "2 skipped"):
        train(recipe, dataset, run, world=World())


def test_gradients_above_the_limit_end_the_run(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(train=OFTEN | {"max_gradient_norm": 1e-6, "max_bad_steps": 4})
    with diverges(tmp_path, "step 4", "4 skipped") as caught:
        train(recipe, dataset, str(tmp_path), world=World())
    assert_names(str(caught.value), "train.max_gradient_norm")
    assert "nan" not in str(caught.value)
    assert checkpoint_paths(str(tmp_path)) == []


def broken_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clip that is NaN, in every epoch."""
    read = ClipReader.read

    def read_broken(self: ClipReader, out: Fbank, rows: IntArray, *others: Any) -> IntArray:
        num_frames = read(self, out, rows, *others)
        out[np.array(self._clips.ids)[rows] == "train/05"] = np.nan
        return num_frames

    monkeypatch.setattr(ClipReader, "read", read_broken)


def stop_at(step: int) -> Callable[[RunProgress], None]:
    def report(progress: RunProgress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def test_restarts_around_bad_steps_change_nothing(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_clip(monkeypatch)
    recipe = tiny_recipe(train=OFTEN)
    straight, run = str(tmp_path / "straight"), str(tmp_path / "run")
    train(recipe, dataset, straight, world=World())
    steps = [entry["step"] for entry in bad_steps(straight)]
    assert len(steps) >= 3
    for entry in bad_steps(straight):
        assert "train/05" in entry["ids"] + entry["partner_ids"]
    for step in (steps[0], steps[1] + 1):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, dataset, run, world=World(), report=stop_at(step))
    train(recipe, dataset, run, world=World())
    assert_same_run(run, straight)
    assert bad_steps(run) == bad_steps(straight)


# Ranks, and precisions


def train_with_a_bad_rank(world: World, document: dict[str, Any], data: str, run: str) -> None:
    """The second rank's share of the third step is NaN."""
    if world.rank == 1:
        pytest.MonkeyPatch().setattr(loop, "augment_batch", failing_at(3))
    train(make_recipe("tiny", document, where="test"), open_dataset(data), run, world=world)
    Path(run, f"last-{world.rank}").write_text("finished")


@pytest.mark.parametrize("sharding", ["replicate", "shard"])
def test_all_ranks_skip_the_same_steps(
    dataset: PreparedDataset, tmp_path: Path, sharding: str
) -> None:
    run = str(tmp_path)
    changes = {"epochs": 1, "micro_batch_size": 2, "sharding": sharding}
    recipe: Recipe = tiny_recipe(train=changes)
    run_ranks(2, train_with_a_bad_rank, recipe.to_json(), dataset.path, run)
    assert [entry["step"] for entry in bad_steps(run)] == [3]
    saved = newest(run)
    assert {int(state["step"]) for state in saved.optimiser["state"].values()} == {5}
    assert all(torch.isfinite(value).all() for value in saved.model.values())
    assert (tmp_path / "last-0").exists()
    assert (tmp_path / "last-1").exists()


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_learns_and_resumes(
    dataset: PreparedDataset, tmp_path: Path, precision: str
) -> None:
    recipe = tiny_recipe(train=OFTEN | {"precision": precision})
    straight, run = str(tmp_path / "straight"), str(tmp_path / "run")
    train(recipe, dataset, straight, world=World())
    losses = train_losses(straight)
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, dataset, run, world=World(), report=stop_at(8))
    train(recipe, dataset, run, world=World())
    assert_same_run(run, straight)
    scaler = newest(run).scaler
    assert scaler == newest(straight).scaler
    assert ("scale" in scaler) == (precision == "float16")
