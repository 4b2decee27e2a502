"""What a model computes, against PyTorch's own count."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.model.flops import forward_flops, peak_flops, peak_of, training_flops
from trainer.model.settings import ModelSettings


def on_meta(settings: ModelSettings, num_classes: int) -> AST:
    """A model of shapes alone."""
    with torch.device("meta"):
        return build_model(settings, num_classes=num_classes, num_mels=128)


@pytest.mark.parametrize(
    ("settings", "num_classes"),
    [
        (ModelSettings(pretrained=False), 527),
        (
            ModelSettings(
                backbone="vit_tiny_patch16_224.augreg_in21k_ft_in1k",
                pretrained=False,
                stride_frequency=16,
                stride_time=12,
                num_frames=256,
                depth=3,
            ),
            10,
        ),
        (
            ModelSettings(
                backbone="deit_tiny_distilled_patch16_224.fb_in1k",
                pretrained=False,
                patchout_time=11,
                patchout_frequency=2,
                patchout_share=0.3,
                depth=2,
            ),
            10,
        ),
    ],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("num_frames", [None, 200])
def test_flops_equal_pytorchs_count(
    settings: ModelSettings, num_classes: int, training: bool, num_frames: int | None
) -> None:
    model = on_meta(settings, num_classes).train(training)
    x = torch.empty(3, num_frames or settings.num_frames, 128, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert forward_flops(model, num_frames) * 3 == counter.get_total_flops()
    assert training_flops(model, num_frames) == 3 * forward_flops(model, num_frames)


def test_base_model_has_the_expected_flops() -> None:
    """Those of all outputs would be 261.5; the last block computes two of 1,214."""
    model = on_meta(ModelSettings(pretrained=False), 527)
    assert forward_flops(model) / 1e9 == pytest.approx(242.2, abs=0.1)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "float16", 756e12),
        ("NVIDIA H100 80GB HBM3", "float32", 67e12),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312e12),
        ("NVIDIA A10", "bfloat16", 125e12),
        ("Tesla V100-SXM2-16GB", "float16", 125e12),
        ("NVIDIA GeForce GTX 1080", "float32", None),
    ],
)
def test_peak_flops_are_known_by_device_name(name: str, precision: str, peak: float | None) -> None:
    assert peak_of(name, precision) == peak
    assert peak_flops(torch.device("cpu"), precision) is None
