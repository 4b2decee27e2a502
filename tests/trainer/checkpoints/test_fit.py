"""Weights that do not fit the model are refused as a whole."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.errors import refused
from tests.trainer.checkpoints.test_state_files import TINY
from trainer.checkpoints.fit import load_backbone, load_exactly
from trainer.checkpoints.state_files import State
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings


def test_weights_of_another_model_are_refused(tmp_path: Path, published: State) -> None:
    wrong = {name: value for name, value in published.items() if name != "cls_token"}
    wrong["pos_embed"] = torch.zeros(1, 578, 192)
    wrong["extra.weight"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(wrong, path)
    settings = ModelSettings(backbone=TINY, weights_file=str(path), num_frames=64)
    shapes = ("shape: pos_embed", [1, 578, 192], [1, 198, 192])
    with refused(path, "missing: cls_token", "unexpected: extra.weight", *shapes):
        build_model(settings, num_classes=2, num_mels=64)


def test_long_lists_of_names_are_shortened() -> None:
    with refused("x", "missing: 0.bias, 0.weight", "2 more"):
        load_exactly(nn.Sequential(*(nn.Linear(1, 1) for _ in range(3))), {}, source="x")


def test_mismatched_weights_change_nothing() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with refused("x", "missing: bias"):
        load_exactly(module, {"weight": torch.zeros(2, 2)}, source="x")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (torch.tensor([1.0, torch.nan]), "NaN"),
        (torch.tensor([1.0, -torch.inf]), "infinite"),
        (torch.tensor([1e300], dtype=torch.float64), "infinite"),
        (torch.tensor([1, 2], dtype=torch.int8), "int8"),
    ],
)
def test_nonfinite_or_integer_weights_are_refused(
    published: State, value: Tensor, fault: str
) -> None:
    state = {**published, "norm.bias": value, "head.weight": torch.tensor([torch.nan])}
    with refused("file.pth", "norm.bias", fault, remedy=True):
        load_backbone(timm.create_model(TINY, num_classes=0), state, source="file.pth")
