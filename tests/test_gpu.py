"""Training on a GPU: the run of a CPU, and no step waits for the device. Skipped without one."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dataset import PreparedDataset
from tests.prepared import make_prepared, tiny_recipe
from tests.runs import untimed
from trainer import loop
from trainer.loop import train
from trainer.run_folder import read_history
from trainer.world import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GPU = World(device=torch.device("cuda"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def test_a_run_is_that_of_a_cpu(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Up to the GPU's convolution, which rounds its inputs to TF32."""
    recipe = tiny_recipe(
        augment={"noise": True, "roll_frames": 5}, train={"log_every_steps": 1, "epochs": 2}
    )
    runs = [str(tmp_path / name) for name in ("cpu", "gpu")]
    for run, world in zip(runs, (World(), GPU), strict=True):
        train(recipe, dataset, run, world=world)
    expected, losses = ([point["loss"] for point in untimed(run)["steps"]] for run in runs)
    assert losses == pytest.approx(expected, rel=1e-2)
    for point in read_history(runs[1])["steps"]:
        assert point["peak_memory_bytes"] > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_no_step_waits_for_the_device(
    dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """With all that is drawn, mixed and left out; CUDA raises where the host would wait."""
    step = loop._step

    def watched(*arguments: Any) -> torch.Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_step", watched)
    recipe = tiny_recipe(
        model={"patchout_time": 1, "patchout_share": 0.2, "checkpoint_activations": True},
        augment={"noise": True, "roll_frames": 5},
        averaging={"ema_decay": 0.9},
        train={"precision": precision, "micro_batch_size": 3, "max_gradient_norm": 1e6},
    )
    train(recipe, dataset, str(tmp_path), world=GPU)
    assert len(read_history(str(tmp_path))["epochs"]) == recipe.train.epochs


@pytest.mark.slow
def test_compiled_blocks_learn(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(model={"compile": True}, train={"precision": "bfloat16"})
    train(recipe, dataset, str(tmp_path), world=GPU)
    losses = [epoch["train_loss"] for epoch in read_history(str(tmp_path))["epochs"]]
    assert losses[-1] < 0.8 * losses[0]
