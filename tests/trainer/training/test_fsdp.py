"""Sharded models: runs equal those of a whole model, and each can resume the other."""

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import ProcessRaisedException

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from tests.support.runs import assert_close_runs, newest, untimed
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.run_progress import RunProgress
from trainer.scores.predictions import read_predictions
from trainer.training.fsdp import whole_copy
from trainer.training.loop import make_model, train
from trainer.training.step import make_learner
from trainer.training.world import World


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """29 clips: in batches of 7 the last is a single one, so that one rank has none."""
    return make_prepared(str(tmp_path_factory.mktemp("data")), num_train=29)


def full_recipe(**changes: Any) -> Recipe:
    """With every setting that involves weights, gradients or unequal shares of ranks."""
    often = {"epochs": 2, "log_every_steps": 1, "checkpoint_every_s": 0, "micro_batch_size": 2}
    return tiny_recipe(
        model={"checkpoint_activations": True, "depth": 2},
        sampler={"bucket_frames": [48, 56]},
        averaging={"first_epoch": 1, "ema_decay": 0.5},
        train=often | changes,
    )


class Stopped(Exception):  # noqa: N818 (no error of the code)
    """Ends a run in a test."""


def stop_at(progress: RunProgress, step: int) -> None:
    if progress.step == step:
        raise Stopped


def train_rank(
    world: World, document: dict[str, Any], data: str, run: str, stop_step: int = -1
) -> None:
    recipe = make_recipe("tiny", document, where="test")
    report = lambda values: stop_at(values, stop_step)  # noqa: E731
    train(recipe, open_dataset(data), run, world=world, report=report)


def train_compiled(world: World, document: dict[str, Any], data: str, run: str) -> None:
    """Skips the last stage of the compiler, which needs a minute and C++."""
    torch.compile = partial(torch.compile, backend="aot_eager")
    train_rank(world, document, data, run)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def train_ranks(world: World, documents: dict[str, dict[str, Any]], data: str) -> None:
    for run, document in documents.items():
        train_rank(world, document, data, run)
    hold_parts(world, document, data)


def hold_parts(world: World, document: dict[str, Any], data: str) -> None:
    """Each rank has about half of the weights, and together they have them once."""
    recipe = make_recipe("tiny", document, where="test")
    ast = make_model(recipe, open_dataset(data), fresh=True)
    num_parameters = ast.num_parameters()
    make_learner(ast, recipe.optimiser, recipe.train, world)
    num_held = sum(cast(DTensor, value).to_local().numel() for value in ast.parameters())
    assert num_held < 0.6 * num_parameters == 0.6 * ast.num_parameters()
    assert world.sum(torch.tensor(num_held)) == num_parameters


@pytest.mark.slow
def test_sharded_run_equals_an_unsharded_one(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Also when one rank starts a run and two sharded ranks resume it, and vice versa."""
    alone, together, handed_over, handed_back = (str(tmp_path / name) for name in "1234")
    whole, shards = full_recipe().to_json(), full_recipe(sharding="shard").to_json()
    train_rank(World(), whole, dataset.path, alone)
    with pytest.raises(Stopped):
        train_rank(World(), whole, dataset.path, handed_over, 3)
    run_ranks(2, train_ranks, {together: shards, handed_over: shards}, dataset.path)
    with pytest.raises(ProcessRaisedException, match="Stopped"):
        run_ranks(2, train_rank, shards, dataset.path, handed_back, 7)
    assert newest(handed_back).progress.step == 7
    train_rank(World(), whole, dataset.path, handed_back)
    for run in (together, handed_over, handed_back):
        assert_close_runs(run, alone)
        for name in ("eval-ema", "eval-averaged"):
            scores, expected = (read_predictions(path, name).scores for path in (run, alone))
            np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.slow
def test_compiled_blocks_train_alike_when_sharded(dataset: PreparedDataset, tmp_path: Path) -> None:
    alone, together = str(tmp_path / "alone"), str(tmp_path / "together")
    train_rank(World(), full_recipe().to_json(), dataset.path, alone)
    recipe = full_recipe(sharding="shard").to_json()
    recipe["model"]["compile"] = True
    run_ranks(2, train_compiled, recipe, dataset.path, together)
    assert_close_runs(together, alone)


@pytest.mark.slow
def test_float16_skips_the_same_steps_when_sharded(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    """All ranks scale the loss alike and skip the same steps."""
    changes = {"precision": "float16", "max_bad_steps": 99, "epochs": 1}
    kinds = ("replicate", "shard")
    documents = {
        str(tmp_path / kind): full_recipe(sharding=kind, **changes).to_json() for kind in kinds
    }
    run_ranks(2, train_ranks, documents, dataset.path)
    expected, points = (untimed(run)["steps"] for run in documents)
    bad, expected_bad = ([p["num_bad_steps"] for p in steps] for steps in (points, expected))
    assert bad == expected_bad
    assert sum(bad) < len(bad)
    losses, expected_losses = (
        [p["loss"] for p in steps if p["loss"] is not None] for steps in (points, expected)
    )
    assert losses == pytest.approx(expected_losses, rel=1e-2)
    scaler, expected_scaler = (newest(run).scaler for run in documents)
    assert scaler == expected_scaler


def test_state_copy_is_not_changed_by_training() -> None:
    state: dict[str, Any] = {
        "step": 3,
        "exp_avg": torch.ones(2),
        "groups": [{"moment": torch.ones(1)}],
    }
    copy, left = whole_copy(state, keep=True), whole_copy(state, keep=False)
    state["exp_avg"].zero_()
    state["groups"][0]["moment"].zero_()
    assert copy == {"step": 3, "exp_avg": copy["exp_avg"], "groups": copy["groups"]}
    assert copy["exp_avg"].tolist() == [1, 1]
    assert copy["groups"][0]["moment"].tolist() == [1]
    assert left == {"step": 3, "exp_avg": None, "groups": [{"moment": None}]}
