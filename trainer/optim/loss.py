"""Losses, and the scores that go with them.

B batch, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from trainer.optim.settings import Loss, ScoreFunction


def loss_per_clip(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Loss of each clip, `[B]`, from logits and targets `[B, C]`.

    Targets may be soft (mixup): cross-entropy takes them as a distribution over the classes,
    rather than truncating them to class numbers as the authors' code does. BCE is the mean over
    the classes.
    """
    if loss == "bce":
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(
            dim=1
        )
    return functional.cross_entropy(logits, targets, reduction="none")


def scores(logits: Tensor, function: ScoreFunction) -> Tensor:
    """Scores `[B, C]` in [0, 1] from logits."""
    return torch.sigmoid(logits) if function == "sigmoid" else torch.softmax(logits, dim=1)
