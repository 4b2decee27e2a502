"""A model's scores on a clip set, computed by all ranks together.

In: a model and a clip set. Steps: the ranks score their slices, every clip exactly once, and gather
them. Out: scores, targets and the mean loss, the same on every rank.

N clips, C classes.
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.data.augment import normalise, raw_log_mel
from trainer.data.batch import Batch
from trainer.data.loader import Loader
from trainer.model.precision import autocast
from trainer.optim.loss import loss_per_clip, scores
from trainer.recipe.settings import TrainSettings
from trainer.scores.metrics import Metrics, evaluate_scores
from trainer.training.divergence import not_finite
from trainer.training.world import World


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evaluation:
    """A model's results on a clip set."""

    targets: NDArray[np.float32]
    """`[N, C]`, 0 or 1."""
    scores: NDArray[np.float32]
    """`[N, C]`, sigmoid or softmax outputs."""
    loss: float
    """Mean over the clips."""
    metrics: Metrics
    wall_s: float
    """Seconds it took."""


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    *,
    mean: float,
    std: float,
    settings: TrainSettings,
    world: World,
    run_path: str,
) -> Evaluation:
    """Score every clip of the loader's set once.

    Args:
        model: not wrapped by DDP; keeps its training mode.
        loader: reads the clips.
        mean: of the raw log-mel, for normalisation.
        std: likewise.
        settings: decide loss and scores, batch size and precision.
        world: the ranks that split the work.
        run_path: the model's run, for the error.

    Raises:
        DivergedError: the model's outputs are not finite numbers.
    """
    start = time.monotonic()
    was_training = model.training
    model.eval()
    slice_size = max(1, settings.batch_size // world.size)
    batches = loader.evaluation_batches(
        rank=world.rank,
        world_size=world.size,
        batch_size=min(slice_size, settings.micro_batch_size or slice_size),
    )
    parts, clips = [], []
    for batch in batches:
        parts.append(_score(model, batch.to_device(world.device), mean, std, settings))
        clips.append(torch.from_numpy(batch.indices))
    model.train(was_training)
    order = world.gather(torch.cat(clips).to(world.device)).cpu().numpy()
    rows = world.gather(torch.cat(parts)).cpu().numpy()
    is_own = rows[:, -1] > 0
    own = rows[is_own][np.argsort(order[is_own])]
    if not np.isfinite(own).all():
        raise not_finite(run_path, loader.clips.name)
    all_targets = loader.clips.targets(np.arange(len(loader.clips)))
    return Evaluation(
        targets=all_targets,
        scores=own[:, :-2].copy(),
        loss=float(own[:, -2].mean(dtype=np.float64)),
        metrics=evaluate_scores(all_targets, own[:, :-2], loader.clips.labels),
        wall_s=time.monotonic() - start,
    )


def _score(
    model: nn.Module, batch: Batch, mean: float, std: float, settings: TrainSettings
) -> Tensor:
    """Scores, loss and clip weight of each clip of a batch on the device, `[B, C + 2]`."""
    fbanks = raw_log_mel(batch.x, batch.lengths, None, batch.audio_fbank)
    with autocast(fbanks.device, settings.precision):
        logits = model(normalise(fbanks, mean, std))
    losses = loss_per_clip(logits, batch.targets, settings.loss)
    return torch.cat(
        [scores(logits, settings.score_function), losses[:, None], batch.clip_weights[:, None]],
        dim=1,
    )
