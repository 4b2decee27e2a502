"""A run that is asked to leave: a checkpoint at that step, and the same run in the end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from tests.support.runs import assert_close_runs, assert_same_run, newest
from trainer.checkpoints.paths import checkpoint_paths
from trainer.run.leaving import LeavingError
from trainer.run.run_progress import RunProgress
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(
    train={"log_every_steps": 4, "checkpoint_every_s": 1e6},
    averaging={"ema_decay": 0.9},
)
STEPS_PER_EPOCH = 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    run = str(tmp_path_factory.mktemp("whole"))
    train(RECIPE, dataset, run, world=World())
    return run


def asked_after(step: int) -> tuple[Callable[[RunProgress], None], Callable[[], str]]:
    """A `report` and an `asked` that know the step before it."""
    last = 0

    def report(progress: RunProgress) -> None:
        nonlocal last
        last = progress.step

    return report, lambda: "tired" if last >= step - 1 else ""


# Between two points of the curve, at the end of an epoch, and at that of the last one.
@pytest.mark.parametrize("step", [3, STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH])
def test_run_that_left_goes_on_as_if_it_had_not(
    dataset: PreparedDataset, whole: str, tmp_path: Path, step: int
) -> None:
    run = str(tmp_path / "run")
    report, asked = asked_after(step)
    with pytest.raises(LeavingError) as caught:
        train(RECIPE, dataset, run, world=World(), report=report, asked=asked)
    assert (caught.value.step, caught.value.reason) == (step, "tired")
    assert newest(run).progress.step == step
    train(RECIPE, dataset, run, world=World())
    assert_same_run(run, whole)


def test_run_whose_steps_are_skipped_leaves_without_a_checkpoint(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    """The checkpoint that a diverged run goes back to precedes the skipped steps."""
    recipe = tiny_recipe(train={"max_gradient_norm": 1e-9})
    report, asked = asked_after(3)
    with pytest.raises(LeavingError):
        train(recipe, dataset, str(tmp_path), world=World(), report=report, asked=asked)
    assert not checkpoint_paths(str(tmp_path))


def leave_by_the_last_rank(world: World, data: str, run: str) -> None:
    num_calls = 0

    def asked() -> str:
        nonlocal num_calls
        num_calls += 1
        return "tired" if num_calls >= 3 and world.rank == world.size - 1 else ""

    with pytest.raises(LeavingError) as caught:
        train(RECIPE, open_dataset(data), run, world=world, asked=asked)
    assert (caught.value.step, caught.value.reason) == (3, "tired")


def go_on(world: World, data: str, run: str) -> None:
    train(RECIPE, open_dataset(data), run, world=world)


def test_all_ranks_leave_when_one_is_asked_and_another_number_goes_on(
    dataset: PreparedDataset, whole: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    run_ranks(2, partial(leave_by_the_last_rank), dataset.path, run)
    run_ranks(3, go_on, dataset.path, run)
    assert_close_runs(run, whole)
