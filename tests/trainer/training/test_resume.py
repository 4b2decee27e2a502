"""A checkpoint that training would not have written is passed over, and the one before is used."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import assert_same_run
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.paths import checkpoint_paths
from trainer.training import loop
from trainer.training.loop import train
from trainer.training.run_state import Run
from trainer.training.world import World

RECIPE = tiny_recipe(train={"epochs": 2}, averaging={"ema_decay": 0.9})
Document = dict[str, Any]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), num_train=14, num_eval=6)


@pytest.fixture(scope="module")
def finished(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of two epochs of two steps, with a checkpoint after each."""
    run = str(tmp_path_factory.mktemp("finished"))
    train(RECIPE, dataset, run, world=World())
    names = [path.rpartition("/")[2] for path in checkpoint_paths(run)]
    assert names == ["step-00000002.pt", "step-00000004.pt"]
    return run


@pytest.fixture
def run(finished: str, tmp_path: Path) -> str:
    return str(shutil.copytree(finished, tmp_path / "run"))


def change(path: str, edit: Callable[[Document], object]) -> None:
    document = torch.load(path, weights_only=True)
    edit(document)
    buffer = io.BytesIO()
    torch.save(document, buffer)
    Path(path).write_bytes(buffer.getvalue())


def progress(**changes: Any) -> Callable[[Document], object]:
    return lambda document: document["progress"].update(changes)


def first_weight(document: Document) -> str:
    return str(next(iter(document["model"])))


EDITS: dict[str, tuple[Callable[[Document], object], str]] = {
    "step a text": (progress(step="four"), "step: must be a valid integer"),
    "step a digit in quotes": (progress(step="4"), "step: must be a valid integer"),
    "step negative": (progress(step=-4), "step: must be greater"),
    "step of another place": (progress(step=3), "of step 3"),
    "epoch far ahead": (progress(epoch=10**6), "epoch 1000000"),
    "epoch huge": (progress(epoch=10**30), "epoch: must be less"),
    "epoch not reached": (progress(epoch=2), "step"),
    "epoch 0": (progress(epoch=0), "epoch 0"),
    "epoch a list": (progress(epoch=[3]), "epoch: must be a valid integer"),
    "step of the epoch ahead": (progress(epoch_step=2), "step 2 of epoch 3"),
    "loss not a number": (progress(loss_sum=float("nan")), "JSON"),
    "progress a list": (lambda d: d.update(progress=[]), "must be an object"),
    "progress gone": (lambda d: d.pop("progress"), "progress"),
    "results gone": (lambda d: d["progress"]["epochs"].clear(), "results"),
    "results of another epoch": (
        lambda d: d["progress"]["epochs"].__setitem__(0, d["progress"]["epochs"][1]),
        "results",
    ),
    "curve ahead": (lambda d: d["progress"]["steps"][-1].update(step=99), "curve"),
    "weight gone": (lambda d: d["model"].pop(first_weight(d)), "missing"),
    "weight renamed": (
        lambda d: d["model"].update(other=d["model"].pop(first_weight(d))),
        "unexpected: other",
    ),
    "weight of another shape": (
        lambda d: d["model"].update({first_weight(d): torch.zeros(3)}),
        "another shape",
    ),
    "weight no tensor": (lambda d: d["model"].update({first_weight(d): 3}), ""),
    "no weights": (lambda d: d.update(model={}), "missing"),
    "optimiser gone": (lambda d: d.update(optimiser={}), "param_groups"),
    "optimiser's state gone": (lambda d: d["optimiser"]["state"].clear(), "state of 0"),
    "a weight's state gone": (lambda d: d["optimiser"]["state"].pop(1), "weights"),
    "a moment gone": (lambda d: d["optimiser"]["state"][1].pop("exp_avg"), "weight 1"),
    "a moment of another shape": (
        lambda d: d["optimiser"]["state"][1].update(exp_avg=torch.zeros(3)),
        "another shape",
    ),
    "optimiser's groups gone": (lambda d: d["optimiser"]["param_groups"].clear(), ""),
    "optimiser of other settings": (
        lambda d: d["optimiser"]["param_groups"][0].update(betas=(0.1, 0.2)),
        "betas",
    ),
    "average gone": (lambda d: d.update(ema={}), "average"),
    "sum of scores gone": (lambda d: d.update(score_sum=None), "scores"),
    "sum of scores of another shape": (lambda d: d.update(score_sum=torch.zeros(5, 3)), "scores"),
    "scaler unexpected": (lambda d: d.update(scaler={"scale": 1.0}), "scaler"),
    "an unknown field": (lambda d: d.update(other=1), "other"),
}


class ResumedError(Exception):
    """Ends a training once its checkpoint is chosen."""


@pytest.mark.parametrize("edit", EDITS)
def test_checkpoint_that_does_not_fit_is_passed_over(
    edit: str,
    dataset: PreparedDataset,
    run: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(_: Run, saved: Checkpoint) -> None:
        raise ResumedError(saved.progress.step)

    monkeypatch.setattr(loop, "restore", stop)
    before, newest = checkpoint_paths(run)
    do, reason = EDITS[edit]
    change(newest, do)
    with pytest.raises(ResumedError, match="2"):
        train(RECIPE, dataset, run, world=World())
    [line] = [text for text in caplog.messages if text.startswith(f"{newest}: damaged")]
    assert "\n" not in line
    assert reason in line
    Path(before).write_bytes(b"")
    with refused(f"{run}/checkpoints", "all 2", remedy=True):
        train(RECIPE, dataset, run, world=World())


def test_run_resumed_from_the_checkpoint_before_is_the_same(
    dataset: PreparedDataset, finished: str, run: str
) -> None:
    change(checkpoint_paths(run)[-1], lambda d: d["optimiser"]["state"].clear())
    train(RECIPE, dataset, run, world=World())
    assert_same_run(run, finished)
