"""Losses: the published ones, also on soft targets, and the scores that go with them."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor

from trainer.optim.loss import loss_per_clip, scores
from trainer.optim.settings import Loss


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) * 3


def test_bce_averages_the_logits_loss_over_classes(logits: Tensor) -> None:
    targets = (torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    probability = 1 / (1 + np.exp(-logits.double().numpy()))
    chosen = np.where(targets.numpy() > 0, probability, 1 - probability)
    expected = -np.log(chosen).mean(axis=1)
    np.testing.assert_allclose(loss_per_clip(logits, targets, "bce"), expected, rtol=1e-5)


def test_ce_with_hard_targets_equals_the_log_loss(logits: Tensor) -> None:
    classes = torch.tensor([0, 3, 1, 2, 2, 0])
    targets = torch.nn.functional.one_hot(classes, 4).float()
    losses = loss_per_clip(logits, targets, "ce")
    assert losses.shape == (6,)
    expected = log_loss(classes, scores(logits.double(), "softmax"), labels=range(4))
    assert float(losses.mean()) == pytest.approx(expected, rel=1e-6)


def test_ce_uses_soft_targets_unchanged(logits: Tensor) -> None:
    first, second = torch.eye(4)[torch.tensor([[0, 1, 2, 3, 0, 1], [1, 1, 3, 0, 2, 3]])]
    mixed = loss_per_clip(logits, 0.3 * first + 0.7 * second, "ce")
    expected = 0.3 * loss_per_clip(logits, first, "ce") + 0.7 * loss_per_clip(logits, second, "ce")
    torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize("loss", ["bce", "ce"])
def test_losses_of_extreme_logits_are_finite(loss: Loss) -> None:
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    losses = loss_per_clip(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), loss)
    torch.autograd.backward(losses.sum())
    assert losses[0] == 0
    assert losses[1] >= 1e4
    assert torch.isfinite(losses).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_scores_are_sigmoid_or_softmax_outputs(logits: Tensor) -> None:
    torch.testing.assert_close(scores(logits, "sigmoid"), 1 / (1 + torch.exp(-logits)))
    softmax = scores(logits, "softmax")
    torch.testing.assert_close(softmax.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(softmax, torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True))
