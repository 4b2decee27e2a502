"""Weights that do not fit the model are refused as a whole."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.errors import UserError
from tests.trainer.checkpoints.test_state_files import TINY
from trainer.checkpoints.fit import load_backbone, load_exactly
from trainer.checkpoints.state_files import State
from trainer.model.build import build_model
from trainer.model.settings import ModelSettings


def test_file_of_another_model(tmp_path: Path, published: State) -> None:
    wrong = {name: value for name, value in published.items() if name != "cls_token"}
    wrong["pos_embed"] = torch.zeros(1, 578, 192)
    wrong["extra.weight"] = torch.zeros(1)
    path = tmp_path / "weights.safetensors"
    save_file(wrong, path)
    settings = ModelSettings(backbone=TINY, weights_file=str(path), num_frames=64)
    with pytest.raises(UserError) as caught:
        build_model(settings, num_classes=2, num_mels=64)
    assert str(caught.value) == (
        f"{path}: the weights do not fit the model: missing: cls_token; "
        "unexpected: extra.weight; "
        "of another shape: pos_embed [1, 578, 192] instead of [1, 198, 192]"
    )


def test_long_lists_of_names_are_cut() -> None:
    with pytest.raises(UserError, match=r"missing: 0\.bias, 0\.weight, 1\.bias, .* and 2 more$"):
        load_exactly(nn.Sequential(*(nn.Linear(1, 1) for _ in range(3))), {}, source="x")


def test_nothing_is_loaded_in_part() -> None:
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(UserError, match="missing: bias"):
        load_exactly(module, {"weight": torch.zeros(2, 2)}, source="x")
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.tensor([1.0, torch.nan]), "norm.bias: holds NaN or infinite numbers; take"),
        (torch.tensor([1.0, -torch.inf]), "norm.bias: holds NaN or infinite numbers; take"),
        (torch.tensor([1e300], dtype=torch.float64), "norm.bias: holds NaN or infinite"),
        (torch.tensor([1, 2], dtype=torch.int8), "norm.bias: must be of floats, got int8; save"),
    ],
)
def test_values_that_no_model_computes_with(published: State, value: Tensor, message: str) -> None:
    state = {**published, "norm.bias": value, "head.weight": torch.tensor([torch.nan])}
    with pytest.raises(UserError, match=rf"^file\.pth: {message}"):
        load_backbone(timm.create_model(TINY, num_classes=0), state, source="file.pth")
