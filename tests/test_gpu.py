"""Training on a GPU: the run of a CPU, and no step waits for the device. Skipped without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import encode, noise
from tests.support.preparation import LABELS, preparation
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.runs import known, train_losses, untimed
from trainer.run.history import read_history
from trainer.training import loop
from trainer.training.loop import train
from trainer.training.world import World

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

GPU = World(device=torch.device("cuda"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def of_audio(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("audio")
    clips = []
    for number in range(24):
        path = folder / f"{number}.wav"
        path.write_bytes(encode(noise(0.5 + 0.01 * number, 16_000, seed=number)))
        split = "eval" if number % 4 == 0 else "train"
        labels = (LABELS[number % 2],)
        clips.append(Clip(id=f"{number}", uri=str(path), labels=labels, split=split))
    made = preparation(folder / "data", clips, PrepareSettings(store="audio"))
    made.build()
    made.finish()
    return open_dataset(str(folder / "data"))


def test_run_on_a_gpu_equals_one_on_a_cpu(dataset: PreparedDataset, tmp_path: Path) -> None:
    """Up to the GPU's convolution, which rounds its inputs to TF32."""
    recipe = tiny_recipe(
        augment={"noise": True, "roll_frames": 5}, train={"log_every_steps": 1, "epochs": 2}
    )
    runs = [str(tmp_path / name) for name in ("cpu", "gpu")]
    for run, world in zip(runs, (World(), GPU), strict=True):
        train(recipe, dataset, run, world=world)
    expected, losses = ([point["loss"] for point in untimed(run)["steps"]] for run in runs)
    assert losses == pytest.approx(expected, rel=1e-2)
    for point in read_history(runs[1]).steps:
        assert known(point.peak_memory_bytes) > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("store", ["dataset", "of_audio"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_no_step_waits_for_the_device(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    precision: str,
    store: str,
) -> None:
    """With all that is drawn, mixed and left out; CUDA raises where the host would wait."""

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*arguments: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return work(*arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return watch

    # The first one copies its filters there, which the host waits for.
    fbank(torch.zeros(1, 16_000, device=GPU.device), FbankSettings())
    for name in ("_step", "update_ema"):
        monkeypatch.setattr(loop, name, watched(getattr(loop, name)))
    recipe = tiny_recipe(
        model={"patchout_time": 1, "patchout_share": 0.2, "checkpoint_activations": True},
        augment={"noise": True, "roll_frames": 5},
        averaging={"ema_decay": 0.9},
        train={"precision": precision, "micro_batch_size": 3, "max_gradient_norm": 1e6},
    )
    train(recipe, request.getfixturevalue(store), str(tmp_path), world=GPU)
    assert len(read_history(str(tmp_path)).epochs) == recipe.train.epochs


# Warnings of torch's own, within the compiler.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.slow
def test_compiled_blocks_learn(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(model={"compile": True}, train={"precision": "bfloat16"})
    train(recipe, dataset, str(tmp_path), world=GPU)
    losses = train_losses(str(tmp_path))
    assert losses[-1] < 0.8 * losses[0]
