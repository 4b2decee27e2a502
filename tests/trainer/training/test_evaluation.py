"""Evaluation: every clip once, as a plain loop scores it, for any number of ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.errors import refused
from tests.support.plain_clips import padded
from tests.support.prepared import make_prepared, tiny_recipe
from tests.support.ranks import run_ranks
from trainer.data.clips import select_clips
from trainer.data.loader import Loader
from trainer.data.settings import LoaderSettings
from trainer.model.ast import AST
from trainer.optim.loss import loss_per_clip, scores
from trainer.optim.settings import Loss, ScoreFunction
from trainer.recipe.settings import Scores, TrainSettings
from trainer.run.skipped_steps import DivergedError
from trainer.training.evaluation import Evaluation, evaluate
from trainer.training.loop import make_model
from trainer.training.world import World

MEAN, STD = -5.0, 2.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), max_labels=2, num_eval=9)


def make_loader(dataset: PreparedDataset) -> Loader:
    return Loader(select_clips(dataset, "eval"), LoaderSettings(threads=1), num_frames=64)


def tiny_model(dataset: PreparedDataset) -> AST:
    return make_model(tiny_recipe(), dataset, fresh=True)


def evaluate_tiny(
    dataset: PreparedDataset, loss: Loss, batch_size: int, world: World, function: Scores = ""
) -> Evaluation:
    return evaluate(
        tiny_model(dataset),
        make_loader(dataset),
        mean=MEAN,
        std=STD,
        settings=TrainSettings(loss=loss, batch_size=batch_size, scores=function),
        world=world,
        run_path="run",
    )


@pytest.mark.parametrize(
    ("loss", "function", "expected"),
    [
        ("bce", "", "sigmoid"),
        ("ce", "", "softmax"),
        ("ce", "sigmoid", "sigmoid"),
        ("bce", "softmax", "softmax"),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_scores_equal_those_of_single_clips(
    dataset: PreparedDataset,
    loss: Loss,
    function: Scores,
    expected: ScoreFunction,
    batch_size: int,
) -> None:
    result = evaluate_tiny(dataset, loss, batch_size, World(), function)
    loader, model = make_loader(dataset), tiny_model(dataset).eval()
    losses = []
    for row in range(9):
        # The index has the 40 clips to train on first.
        fbank = torch.from_numpy(dataset.read_fbank(40 + row).copy())
        x = ((padded(fbank, 64) - MEAN) / (2 * STD))[None]
        targets = torch.from_numpy(loader.clips.targets(np.array([row])))
        with torch.inference_mode():
            logits = model(x)
        np.testing.assert_allclose(result.scores[row], scores(logits, expected)[0], atol=1e-6)
        assert np.array_equal(result.targets[row], targets[0])
        losses.append(float(loss_per_clip(logits, targets, loss)[0]))
    assert result.loss == pytest.approx(np.mean(losses), abs=1e-5)
    assert result.scores.dtype == np.float32
    assert result.metrics.num_clips == 9
    assert result.metrics.mAP == pytest.approx(
        average_precision_score(result.targets, result.scores, average="macro")
    )


def test_clips_are_padded_to_their_bucket(dataset: PreparedDataset) -> None:
    clips, model = select_clips(dataset, "eval"), tiny_model(dataset).eval()
    loader = Loader(clips, LoaderSettings(), num_frames=64, bucket_frames=(48, 56))
    evaluated = evaluate(
        model,
        loader,
        mean=MEAN,
        std=STD,
        settings=TrainSettings(batch_size=4),
        world=World(),
        run_path="run",
    ).scores
    lengths = set()
    for row in range(9):
        fbank = torch.from_numpy(dataset.read_fbank(40 + row).copy())
        length = min(size for size in (48, 56, 64) if size >= min(len(fbank), 64))
        lengths.add(length)
        x = ((padded(fbank, length) - MEAN) / (2 * STD))[None]
        with torch.inference_mode():
            np.testing.assert_allclose(evaluated[row], scores(model(x), "sigmoid")[0], atol=1e-6)
    assert lengths == {48, 56, 64}


def evaluate_in_buckets(dataset: PreparedDataset, world: World) -> Evaluation:
    clips = select_clips(dataset, "eval")
    return evaluate(
        tiny_model(dataset),
        Loader(clips, LoaderSettings(threads=1), num_frames=64, bucket_frames=(48, 56)),
        mean=MEAN,
        std=STD,
        settings=TrainSettings(batch_size=2),
        world=world,
        run_path="run",
    )


def save_evaluations(world: World, data_path: str, output: str) -> None:
    dataset = open_dataset(data_path)
    result = evaluate_tiny(dataset, "bce", 2, world)
    np.savez(f"{output}/{world.rank}.npz", scores=result.scores, loss=result.loss)
    result = evaluate_in_buckets(dataset, world)
    np.savez(f"{output}/{world.rank}-in-buckets.npz", scores=result.scores, loss=result.loss)


def test_ranks_together_give_the_same_scores(dataset: PreparedDataset, tmp_path: Path) -> None:
    """9 clips on 2 ranks: 5 and 4, so that the second has a filler."""
    run_ranks(2, save_evaluations, dataset.path, str(tmp_path))
    alone = evaluate_tiny(dataset, "bce", 4, World())
    in_buckets = evaluate_in_buckets(dataset, World())
    for rank in range(2):
        with np.load(tmp_path / f"{rank}-in-buckets.npz") as results:
            np.testing.assert_allclose(results["scores"], in_buckets.scores, atol=1e-6)
        with np.load(tmp_path / f"{rank}.npz") as results:
            np.testing.assert_allclose(results["scores"], alone.scores, atol=1e-6)
            assert float(results["loss"]) == pytest.approx(alone.loss, abs=1e-6)


class Noted(nn.Module):
    """A model that records its batch sizes and dtypes."""

    def __init__(self, model: AST) -> None:
        super().__init__()
        self.model = model
        self.seen: set[tuple[int, torch.dtype]] = set()
        model.blocks[-1].get_submodule("mlp.fc2").register_forward_hook(self._note)

    def _note(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.seen.add((len(output), output.dtype))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        assert logits.dtype == torch.float32
        return logits


def evaluate_noted(
    dataset: PreparedDataset, settings: TrainSettings
) -> tuple[Evaluation, set[tuple[int, torch.dtype]]]:
    model = Noted(tiny_model(dataset))
    result = evaluate(
        model,
        make_loader(dataset),
        mean=MEAN,
        std=STD,
        settings=settings,
        world=World(),
        run_path="run",
    )
    return result, model.seen


def test_evaluation_uses_the_precision_of_training(dataset: PreparedDataset) -> None:
    """As the authors do. The results are still float32."""
    exact, seen = evaluate_noted(dataset, TrainSettings(batch_size=9))
    assert seen == {(9, torch.float32)}
    result, seen = evaluate_noted(dataset, TrainSettings(batch_size=9, precision="bfloat16"))
    assert seen == {(9, torch.bfloat16)}
    assert result.scores.dtype == np.float32
    assert 0 < np.abs(result.scores - exact.scores).max() < 0.02
    # But not the head: bfloat16 has so few numbers that clips would have the same score.
    logits = torch.logit(torch.from_numpy(result.scores))
    off = logits / logits.bfloat16() - 1
    assert (off.abs() > 1e-4).float().mean() > 0.8


def test_evaluation_uses_the_micro_batch_size_of_training(dataset: PreparedDataset) -> None:
    _, seen = evaluate_noted(dataset, TrainSettings(batch_size=9, micro_batch_size=3))
    assert {size for size, _ in seen} == {3}


class Constant(nn.Module):
    """Returns constant logits and records the mode it was called in."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.modes.append(self.training)
        return torch.full((len(x), 3), self.value)


def evaluate_constant(dataset: PreparedDataset, model: Constant) -> Evaluation:
    return evaluate(
        model,
        make_loader(dataset),
        mean=MEAN,
        std=STD,
        settings=TrainSettings(batch_size=5),
        world=World(),
        run_path="/runs/a",
    )


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_mode_is_set_and_restored(dataset: PreparedDataset, mode: bool) -> None:
    model = Constant(0.0).train(mode)
    assert evaluate_constant(dataset, model).loss == pytest.approx(np.log(2))
    assert model.modes == [False, False]
    assert model.training is mode


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_diverged_model_is_an_explained_error(dataset: PreparedDataset, value: float) -> None:
    with refused("/runs/a", "'eval'", "schedule.lr", type=DivergedError, remedy="--out"):
        evaluate_constant(dataset, Constant(value))
