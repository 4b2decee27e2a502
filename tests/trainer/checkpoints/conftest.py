"""Fixtures for tests of weights."""

import pytest
import timm
import torch

from trainer.checkpoints.state_files import State


@pytest.fixture(scope="module")
def published() -> State:
    """A whole state dict as timm and DeiT publish it: backbone and two image classifiers."""
    torch.manual_seed(7)
    return timm.create_model(
        "deit_tiny_distilled_patch16_224.fb_in1k", pretrained=False
    ).state_dict()
