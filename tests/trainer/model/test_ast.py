"""The AST model against transformers, timm, plain arithmetic and the numbers of the paper."""

import copy
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torch._dynamo
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import Block, ParallelThingsBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from transformers import ASTConfig, ASTForAudioClassification

from pipeline.errors import SettingValueError
from tests.support.errors import refused
from trainer.checkpoints.names import from_transformers_state
from trainer.data.random_streams import patchout_seed
from trainer.model.ast import AST
from trainer.model.build import build_model, check_backbone
from trainer.model.last_block import can_leave_out, take_num_outputs
from trainer.model.patches import adapt_position_embedding, draw_kept_patches
from trainer.model.settings import ModelSettings

TINY = "deit_tiny_distilled_patch16_224.fb_in1k"
TINY_ONE_TOKEN = "deit_tiny_patch16_224.fb_in1k"

Array = np.ndarray[Any, np.dtype[Any]]
Module = TypeVar("Module", bound=nn.Module)


def small_settings(**changes: Any) -> ModelSettings:
    defaults: dict[str, Any] = {"backbone": TINY, "pretrained": False, "depth": 2, "num_frames": 64}
    return ModelSettings(**{**defaults, **changes})


def separate_patches(frequency: int, time: int) -> dict[str, int]:
    """Settings of such patches without overlap."""
    strides = {"stride_frequency": frequency, "stride_time": time}
    return {"patch_frequency": frequency, "patch_time": time, **strides}


def randomise(module: Module, seed: int = 0) -> Module:
    """Every parameter random, so that no bias, norm or embedding is at a value that hides it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm_weight = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm_weight else 0.1 * noise)
    return module


def random_backbone_file(
    tmp_path: Path, name: str = TINY, seed: int = 0
) -> tuple[VisionTransformer, str]:
    """A timm backbone with random weights, without classifier, and a file of them."""
    created = cast(VisionTransformer, timm.create_model(name, num_classes=0))
    backbone = randomise(created, seed).eval()
    path = tmp_path / "backbone.safetensors"
    save_file(backbone.state_dict(), path)
    return backbone, str(path)


# Settings


@pytest.mark.parametrize(
    ("stride", "num_frames", "expected"),
    [
        (10, 1024, 1212),
        (12, 1024, 850),
        (14, 1024, 657),
        (16, 1024, 512),
        (10, 512, 600),
        (10, 128, 144),
    ],
)
def test_number_of_patches_equals_the_published(
    stride: int, num_frames: int, expected: int
) -> None:
    shape = ModelSettings(stride_frequency=stride, stride_time=stride, num_frames=num_frames)
    assert shape.num_patches(128) == expected


@pytest.mark.parametrize(
    ("changes", "num_tokens", "num_class_tokens"),
    [
        # Strides 16, 14, 12 and 10: patches that overlap by 0, 2, 4 and 6.
        ({"stride_frequency": 16, "stride_time": 16}, 512, 2),
        ({"stride_frequency": 14, "stride_time": 14}, 657, 2),
        ({"stride_frequency": 12, "stride_time": 12}, 850, 2),
        ({}, 1212, 2),
        ({"num_frames": 512}, 600, 2),
        ({"num_frames": 128}, 144, 2),
        # ViT beside DeiT, with and without the distilled token, for images of 224 and 384.
        ({"backbone": "vit_base_patch16_224.orig_in21k_ft_in1k"}, 1212, 1),
        ({"backbone": "vit_base_patch16_384.orig_in21k_ft_in1k"}, 1212, 1),
        ({"backbone": "deit_base_patch16_224.fb_in1k"}, 1212, 1),
        ({"backbone": "deit_base_patch16_384.fb_in1k"}, 1212, 1),
        ({"backbone": "deit_base_distilled_patch16_224.fb_in1k"}, 1212, 2),
        ({"backbone": "deit_small_distilled_patch16_224.fb_in1k"}, 1212, 2),
        ({"backbone": "deit_tiny_distilled_patch16_224.fb_in1k"}, 1212, 2),
        ({"position_embedding": "reinitialise"}, 1212, 2),
        # Patches of other shapes, without overlap.
        (separate_patches(128, 2), 512, 2),
        (separate_patches(32, 32), 128, 2),
        # PaSST's patchout, whose embedding has the patches left out, too.
        ({"patchout_time": 40, "patchout_frequency": 4}, 1212, 2),
        ({"patchout_share": 0.5}, 1212, 2),
    ],
)
def test_settings_cover_the_papers_ablations(
    changes: dict[str, Any], num_tokens: int, num_class_tokens: int
) -> None:
    shape = ModelSettings(**{"pretrained": False, **changes})
    with torch.device("meta"):
        model = build_model(shape, num_classes=527, num_mels=128).eval()
        assert model(torch.empty(1, shape.num_frames, 128)).shape == (1, 527)
    assert model.num_class_tokens == num_class_tokens
    assert model.pos_embed.shape[1] == num_class_tokens + num_tokens


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    patch=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    data=st.data(),
)
def test_grid_equals_the_convolutions_output(
    size: tuple[int, int], patch: tuple[int, int], data: st.DataObject
) -> None:
    patch = (min(patch[0], size[0]), min(patch[1], size[1]))
    stride = (data.draw(st.integers(1, patch[0])), data.draw(st.integers(1, patch[1])))
    shape = ModelSettings(
        patch_frequency=patch[0],
        patch_time=patch[1],
        stride_frequency=stride[0],
        stride_time=stride[1],
        num_frames=size[1],
    )
    with torch.device("meta"):
        output = nn.Conv2d(1, 1, patch, stride)(torch.empty(1, 1, *size))
    assert shape.grid(size[0]) == tuple(output.shape[2:])


@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ({"patch_frequency": 0}, "patch_frequency", ["got 0"]),
        ({"patch_time": 0}, "patch_time", ["got 0"]),
        ({"num_frames": 0}, "num_frames", ["got 0"]),
        ({"num_frames": 15}, "num_frames", ["patch_time", 16, "got 15"]),
        ({"stride_frequency": 0}, "stride_frequency", ["patch_frequency", 16, "got 0"]),
        ({"stride_time": 17}, "stride_time", ["patch_time", 16, "got 17"]),
        ({"position_embedding": "keep"}, "position_embedding", ["got 'keep'"]),
        ({"depth": -1}, "depth", ["got -1"]),
        ({"layer_norm_eps": -1e-6}, "layer_norm_eps", ["got -1e-06"]),
        ({"head_norm_eps": 0.0}, "head_norm_eps", [1e-30, "got 0.0"]),
        ({"weights_file": "a.pt", "pretrained": False}, "weights_file", ["pretrained", "got a.pt"]),
        ({"patchout_time": -1}, "patchout_time", ["got -1"]),
        ({"patchout_time": 101}, "patchout_time", ["101 columns", "got 101"]),
        ({"patchout_frequency": -1}, "patchout_frequency", ["got -1"]),
        ({"patchout_share": -0.1}, "patchout_share", ["got -0.1"]),
        ({"patchout_share": 1.0}, "patchout_share", ["got 1.0"]),
    ],
)
def test_model_settings_out_of_range_are_refused(
    changes: dict[str, Any], name: str, values: list[object]
) -> None:
    with refused(name, *values, type=SettingValueError):
        ModelSettings(**changes)


def test_limits_of_the_ranges_are_allowed() -> None:
    shape = ModelSettings(stride_frequency=16, stride_time=1, num_frames=16)
    assert shape.grid(16) == (1, 1)
    assert ModelSettings(backbone=f"{TINY}.fb_in1k").pretrained


def test_patch_higher_than_the_input_is_refused() -> None:
    with refused("model.patch_frequency", 15, "got 16"):
        ModelSettings().grid(15)


def test_patchout_of_every_row_is_refused() -> None:
    assert ModelSettings(patchout_frequency=11, patchout_time=100).grid(128) == (12, 101)
    with refused("model.patchout_frequency", "12 rows", "got 12"):
        ModelSettings(patchout_frequency=12).grid(128)


# Size and structure


def test_base_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = build_model(ModelSettings(pretrained=False), num_classes=527, num_mels=128)
    assert model.num_parameters() == 86_594_063
    assert model.pos_embed.shape == (1, 2 + 1212, 768)
    assert len(model.blocks) == 12


def test_norms_have_the_authors_eps() -> None:
    model = build_model(small_settings(), num_classes=3, num_mels=64)
    eps = {name: m.eps for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    assert eps.pop("head_norm") == 1e-5
    assert set(eps.values()) == {1e-6}
    assert len(eps) == 2 * 2 + 1


def test_depth_above_that_of_the_backbone_is_refused() -> None:
    with refused("model.depth", 12, "got 13"):
        build_model(small_settings(depth=13), num_classes=3, num_mels=64)


@pytest.mark.parametrize(
    "backbone",
    [
        "vit_tiny_r_s16_p8_224",  # a convolutional stem before the transformer
        "vit_medium_patch16_gap_240",  # no class token
        "vit_base_patch32_clip_224",  # a norm before the blocks
        "vit_small_patch14_reg4_dinov2",  # register tokens
        "vit_small_patch16_dinov3",  # rotary positions
    ],
)
def test_unsupported_backbones_are_refused(backbone: str) -> None:
    with torch.device("meta"), refused("backbone", backbone, remedy=True):
        build_model(small_settings(backbone=backbone), num_classes=3, num_mels=64)


# Against transformers


@pytest.mark.parametrize("names", ["in memory", "on disk"])
@pytest.mark.parametrize(
    ("num_mels", "num_frames", "strides", "depth", "eps"),
    [
        (128, 128, (10, 10), 2, 1e-12),
        (64, 100, (16, 16), 3, 1e-2),
        (80, 67, (12, 7), 2, 1e-5),
    ],
)
def test_logits_equal_those_of_transformers(
    tmp_path: Path,
    names: str,
    num_mels: int,
    num_frames: int,
    strides: tuple[int, int],
    depth: int,
    eps: float,
) -> None:
    config = ASTConfig(
        hidden_size=192,
        num_hidden_layers=depth,
        num_attention_heads=3,
        intermediate_size=768,
        layer_norm_eps=eps,
        frequency_stride=strides[0],
        time_stride=strides[1],
        max_length=num_frames,
        num_mel_bins=num_mels,
        num_labels=5,
    )
    reference = randomise(ASTForAudioClassification(config)).eval()
    state = reference.state_dict()
    if names == "on disk":
        reference.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    model = build_model(
        small_settings(
            **{"stride_frequency": strides[0], "stride_time": strides[1]},
            **{"num_frames": num_frames, "depth": depth},
            **{"layer_norm_eps": eps, "head_norm_eps": eps},
        ),
        num_classes=5,
        num_mels=num_mels,
    ).eval()
    model.load_state_dict(from_transformers_state(state))
    x = torch.randn(3, num_frames, num_mels, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = reference(x).logits, model(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_transformers_names_differ_on_disk_and_in_memory(tmp_path: Path) -> None:
    """Else the parity test above would test one style twice."""
    config = ASTConfig(hidden_size=6, num_attention_heads=1, num_hidden_layers=1, max_length=32)
    reference = ASTForAudioClassification(config)
    reference.save_pretrained(tmp_path)
    prefix = "audio_spectrogram_transformer"
    on_disk = load_file(tmp_path / "model.safetensors")
    assert f"{prefix}.encoder.layer.0.attention.attention.query.weight" in on_disk
    assert f"{prefix}.layers.0.attention.q_proj.weight" in reference.state_dict()


# Pretrained weights of an image model


@pytest.mark.parametrize("name", [TINY, TINY_ONE_TOKEN])
def test_single_channel_equals_three_equal_channels(tmp_path: Path, name: str) -> None:
    """Summed weights: timm's embedding of an image with the same picture in all channels."""
    backbone, path = random_backbone_file(tmp_path, name)
    shape = small_settings(
        **{"backbone": name, "pretrained": True, "weights_file": path, "depth": 0},
        **{"stride_frequency": 16, "stride_time": 16, "num_frames": 224},
    )
    model = build_model(shape, num_classes=3, num_mels=224).eval()
    x = torch.randn(2, 224, 224, generator=torch.Generator().manual_seed(1))
    image = x.transpose(1, 2).unsqueeze(1).expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = backbone.forward_head(backbone.forward_features(image), pre_logits=True)
        torch.testing.assert_close(model.embed(x), expected, atol=1e-4, rtol=1e-4)


def test_backbone_weights_are_loaded(tmp_path: Path) -> None:
    backbone, path = random_backbone_file(tmp_path)
    model = build_model(
        small_settings(pretrained=True, weights_file=path, num_frames=400),
        num_classes=3,
        num_mels=128,
    )
    assert torch.equal(
        model.patch_embed.weight, backbone.patch_embed.proj.weight.sum(1, keepdim=True)
    )
    assert torch.equal(
        model.get_parameter("patch_embed.bias"), backbone.get_parameter("patch_embed.proj.bias")
    )
    assert torch.equal(model.get_parameter("dist_token"), backbone.get_parameter("dist_token"))
    ours, theirs = model.blocks.state_dict(), backbone.blocks[:2].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    expected = adapt_position_embedding(
        backbone.get_parameter("pos_embed"),
        num_class_tokens=2,
        source=(14, 14),
        target=(12, 39),
    )
    assert torch.equal(model.pos_embed, expected)


def test_position_embedding_can_be_reinitialised(tmp_path: Path) -> None:
    backbone, path = random_backbone_file(tmp_path)
    shape = small_settings(
        pretrained=True, weights_file=path, position_embedding="reinitialise", num_frames=400
    )
    model = build_model(shape, num_classes=3, num_mels=128)
    assert model.pos_embed.shape == (1, 2 + 12 * 39, 192)
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    assert torch.equal(model.cls_token, backbone.get_parameter("cls_token"))


@pytest.mark.parametrize("patch", [(128, 2), (16, 8)])
def test_other_patch_shapes_get_a_random_projection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patch: tuple[int, int]
) -> None:
    backbone, path = random_backbone_file(tmp_path)
    shape = small_settings(
        **{"pretrained": True, "weights_file": path, "num_frames": 40},
        **{"patch_frequency": patch[0], "patch_time": patch[1]},
        **{"stride_frequency": 10, "stride_time": 1},
    )
    with caplog.at_level(logging.WARNING):
        model = build_model(shape, num_classes=3, num_mels=128)
    assert "the patch projection starts from random weights" in caplog.text
    assert model.patch_embed.weight.shape == (192, 1, *patch)
    assert model.patch_embed.weight.std() > 0
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.get_parameter(name), backbone.get_parameter(name))
    assert model(torch.randn(2, 40, 128)).shape == (2, 3)


# Positional embedding


def plain_fit(values: Array, size: int) -> Array:
    """A vector of embeddings [n, D] fitted to another length, one entry at a time."""
    length = len(values)
    if size <= length:
        start = int(length / 2) - int(size / 2)
        return values[start : start + size]
    fitted = []
    for index in range(size):
        position = min(max((index + 0.5) * length / size - 0.5, 0), length - 1)
        left = int(position)
        right = min(left + 1, length - 1)
        fitted.append(values[left] * (1 - (position - left)) + values[right] * (position - left))
    return np.stack(fitted)


@settings(deadline=None)
@given(
    source=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    num_class_tokens=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_adapted_position_embedding_equals_plain_arithmetic(
    source: tuple[int, int], target: tuple[int, int], num_class_tokens: int, seed: int
) -> None:
    values = np.random.default_rng(seed).normal(
        size=(1, num_class_tokens + source[0] * source[1], 3)
    )
    fitted = adapt_position_embedding(
        torch.tensor(values), num_class_tokens=num_class_tokens, source=source, target=target
    ).numpy()
    grid = values[0, num_class_tokens:].reshape(*source, 3)
    grid = np.stack([plain_fit(row, target[1]) for row in grid])
    grid = np.stack([plain_fit(grid[:, column], target[0]) for column in range(target[1])], axis=1)
    assert fitted.shape == (1, num_class_tokens + target[0] * target[1], 3)
    np.testing.assert_array_equal(fitted[:, :num_class_tokens], values[:, :num_class_tokens])
    np.testing.assert_allclose(fitted[0, num_class_tokens:], grid.reshape(-1, 3), atol=1e-12)


def test_audioset_keeps_the_middle_frequencies_of_imagenet() -> None:
    grid = torch.arange(24.0).repeat_interleave(24)[None, :, None]
    embedding = torch.cat([torch.tensor([[[-1.0], [-2.0]]]), grid], dim=1)
    fitted = adapt_position_embedding(
        embedding, num_class_tokens=2, source=(24, 24), target=(12, 101)
    ).flatten()
    assert fitted[:2].tolist() == [-1, -2]
    rows = fitted[2:].reshape(12, 101)
    assert torch.equal(rows, torch.arange(6.0, 18.0)[:, None].expand(12, 101))


# Training and running


def test_gradients_reach_every_parameter() -> None:
    for backbone in (TINY, TINY_ONE_TOKEN):
        model = randomise(
            build_model(small_settings(backbone=backbone), num_classes=3, num_mels=64)
        )
        model(torch.randn(2, 64, 64)).square().sum().backward()
        dead = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is None or not parameter.grad.abs().sum() > 0
        ]
        assert dead == []


def test_initialisation_depends_on_the_seed_alone() -> None:
    def state(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build_model(small_settings(), num_classes=3, num_mels=64).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("patch_embed.weight", "pos_embed", "blocks.1.mlp.fc1.weight", "head.weight"):
        assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("backbone", [TINY, TINY_ONE_TOKEN])
def test_from_scratch_tokens_and_positions_start_at_the_authors_deviation(backbone: str) -> None:
    """timm 0.4.5 draws all of them with a deviation of 0.02."""
    draws: dict[str, list[Tensor]] = {}
    for seed in range(10):
        torch.manual_seed(seed)
        model = build_model(small_settings(backbone=backbone), num_classes=3, num_mels=64)
        for name in ("cls_token", "dist_token", "pos_embed"):
            if (value := getattr(model, name)) is not None:
                draws.setdefault(name, []).append(value.detach().flatten())
    assert ("dist_token" in draws) == (backbone == TINY)
    for name, values in draws.items():
        drawn = torch.cat(values)
        assert drawn.std().item() == pytest.approx(0.02, rel=0.08), name
        assert drawn.mean().item() == pytest.approx(0, abs=0.002), name


def test_logits_are_independent_of_the_batch() -> None:
    model = randomise(build_model(small_settings(), num_classes=3, num_mels=64)).eval()
    x = torch.randn(4, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-5, rtol=1e-5)


def test_shorter_inputs_use_the_first_positions_in_time() -> None:
    """As of a model of their length with the same weights, its positional embedding cut."""
    model = randomise(build_model(small_settings(), num_classes=3, num_mels=64)).eval()
    for num_frames, columns in ((16, 1), (40, 3)):
        short = build_model(small_settings(num_frames=num_frames), num_classes=3, num_mels=64)
        tokens = [0, 1, *(2 + 5 * row + column for row in range(5) for column in range(columns))]
        state = model.state_dict()
        short.load_state_dict({**state, "pos_embed": state["pos_embed"][:, tokens]})
        x = torch.randn(2, num_frames, 64)
        with torch.no_grad():
            torch.testing.assert_close(model(x), short.eval()(x))


def test_patchout_removes_fewer_columns_from_shorter_inputs() -> None:
    settings = small_settings(patchout_time=2)
    assert settings.grid(64) == (5, 5)
    kept = [settings.num_kept_patches(64, frames) for frames in (16, 26, 36, 46, 56, None)]
    assert kept == [5, 10, 10, 15, 15, 15]
    model = build_model(settings, num_classes=3, num_mels=64).train()
    for num_frames in (16, 36, 64):
        assert model(torch.randn(2, num_frames, 64)).shape == (2, 3)


@pytest.mark.parametrize("shape", [(2, 65, 64), (2, 15, 64), (2, 64, 63), (2, 1, 64, 64), (64, 64)])
def test_inputs_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    model = build_model(small_settings(), num_classes=3, num_mels=64)
    with pytest.raises(ValueError, match=rf"\[B, 64 frames, 64 mels\].*{re.escape(str([*shape]))}"):
        model(torch.zeros(shape))


def test_attention_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(small_settings(), num_classes=3, num_mels=64)
    fused = Mock(wraps=functional.scaled_dot_product_attention)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", fused)
    model(torch.zeros(1, 64, 64))
    assert fused.call_count == 2


def test_model_compiles_into_one_graph() -> None:
    model: AST = build_model(small_settings(), num_classes=3, num_mels=64).eval()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    x = torch.randn(2, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


# Patches left out of training steps


@given(
    grid=st.tuples(st.integers(1, 8), st.integers(1, 12)),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_patchout_removes_rows_and_columns_then_a_share(
    grid: tuple[int, int], share: float, seed: int, data: st.DataObject
) -> None:
    rows, columns = (data.draw(st.integers(0, size - 1)) for size in grid)
    shape = ModelSettings(
        patch_time=1,
        stride_time=1,
        num_frames=grid[1],
        patchout_frequency=rows,
        patchout_time=columns,
    )
    device = torch.device("cpu")
    kept = draw_kept_patches(
        shape, grid, generator=torch.Generator().manual_seed(seed), device=device
    )
    table = torch.zeros(grid)
    table.view(-1)[kept] = 1
    kept_grid = (int(table.any(1).sum()), int(table.any(0).sum()))
    assert kept_grid == (grid[0] - rows, grid[1] - columns)
    assert table.sum() == len(kept) == (grid[0] - rows) * (grid[1] - columns)
    assert kept.tolist() == sorted(kept.tolist())

    thinner = replace(shape, patchout_share=share)
    fewer = draw_kept_patches(
        thinner, grid, generator=torch.Generator().manual_seed(seed), device=device
    )
    assert set(fewer.tolist()) <= set(kept.tolist())
    assert len(fewer) == len(kept) - int(share * len(kept))
    assert fewer.tolist() == sorted(fewer.tolist())


@pytest.mark.parametrize(
    ("changes", "num_kept"),
    [
        ({"patchout_time": 40, "patchout_frequency": 4}, (101 - 40) * (12 - 4)),
        ({"patchout_share": 0.5}, 1212 // 2),
    ],
)
def test_patchout_keeps_the_expected_number_of_patches(
    changes: dict[str, Any], num_kept: int
) -> None:
    shape = small_settings(num_frames=1024, depth=1, **changes)
    assert shape.num_kept_patches(128) == num_kept
    model = build_model(shape, num_classes=3, num_mels=128).train()
    widths = []
    model.blocks[0].register_forward_hook(lambda _, inputs, __: widths.append(inputs[0].shape[1]))
    assert model(torch.zeros(1, 1024, 128)).shape == (1, 3)
    assert widths == [2 + num_kept]


def test_every_patch_is_kept_at_times() -> None:
    shape = small_settings(patchout_time=3, patchout_frequency=2, patchout_share=0.3)
    grid = shape.grid(64)
    counts = torch.zeros(grid[0] * grid[1])
    for step in range(600):
        generator = torch.Generator().manual_seed(patchout_seed(7, step))
        counts[draw_kept_patches(shape, grid, generator=generator, device=torch.device("cpu"))] += 1
    share = counts.sum() / len(counts) / 600
    assert torch.allclose(counts / 600, share.expand_as(counts), atol=0.1)


PATCHOUT = {"patchout_time": 2, "patchout_frequency": 1, "patchout_share": 0.25}


def test_removed_patches_do_not_affect_the_logits() -> None:
    """Logits are those of the kept patches alone, and in evaluation nothing is left out."""
    shape = small_settings(**PATCHOUT)
    model = randomise(build_model(shape, num_classes=3, num_mels=64))
    plain = build_model(small_settings(), num_classes=3, num_mels=64).eval()
    plain.load_state_dict(model.state_dict())
    x = torch.randn(2, 64, 64)
    seen = []
    model.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(inputs[0]))
    plain.blocks[0].register_forward_hook(lambda block, inputs, output: seen.append(inputs[0]))
    model.patchout_seed = 3
    with torch.no_grad():
        logits = model(x)
        torch.testing.assert_close(model.eval()(x), plain(x))
    generator = torch.Generator().manual_seed(3)
    kept = draw_kept_patches(shape, shape.grid(64), generator=generator, device=x.device)
    positions = [0, 1, *(2 + kept).tolist()]
    few, _, all_tokens = seen
    assert few.shape[1] == 2 + 4 * 3 - int(0.25 * 4 * 3)
    torch.testing.assert_close(few, all_tokens[:, positions])
    with torch.no_grad():
        expected = plain.blocks(all_tokens[:, positions])[:, :2]
        expected = plain.head(plain.head_norm(plain.norm(expected).mean(dim=1)))
    torch.testing.assert_close(logits, expected)


def test_kept_patches_depend_on_the_step_alone() -> None:
    model = randomise(build_model(small_settings(**PATCHOUT), num_classes=3, num_mels=64))
    x = torch.randn(2, 64, 64)
    seeds = [patchout_seed(0, 0), patchout_seed(0, 1), patchout_seed(1, 0)]
    before = torch.get_rng_state()
    logits = []
    for model.patchout_seed in [*seeds, seeds[0]]:
        logits.append(model(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(logits[0], logits[3])
    assert len({tuple(output.flatten().tolist()) for output in logits}) == 3
    # Without a seed the global one decides, as with dropout.
    model.patchout_seed = None
    assert not torch.equal(model(x), model(x))


# Memory and speed


def test_checkpointed_activations_give_the_same_gradients() -> None:
    x = torch.randn(2, 64, 64)
    gradients, calls = [], []
    for is_on in (False, True):
        shape = small_settings(**PATCHOUT, checkpoint_activations=is_on)
        model = randomise(build_model(shape, num_classes=3, num_mels=64))
        count: list[int] = []
        for block in model.blocks:
            block.get_submodule("norm1").register_forward_hook(
                lambda *_, count=count: count.append(1)
            )
        model.patchout_seed = 1
        model(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        calls.append(len(count))
    assert calls == [2, 4]
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


# torch hides this warning itself, but not where warnings are errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_have_a_graph_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch's last batch, which is a smaller one, leaves those before and after as they are."""
    sizes = []

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        sizes.append(
            [size for one in inputs if isinstance(one, torch.Tensor) for size in one.shape]
        )
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = build_model(small_settings(compile=True), num_classes=3, num_mels=64)
    torch._dynamo.reset()
    for num_clips in (4, 3, 4, 2, 4):
        model(torch.randn(num_clips, 64, 64)).sum().backward()
    # The last block is another program than those before it.
    assert len(sizes) == 2 * 3
    assert all(isinstance(size, int) for shapes in sizes for size in shapes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qk_norm": True, "scale_attn_norm": True, "init_values": 0.5},
        {"qkv_bias": False},
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_last_block_gives_the_first_outputs_of_the_whole(
    changes: dict[str, Any], fused: bool
) -> None:
    """Outputs and gradients are timm's."""
    torch.manual_seed(0)
    whole: Any = Block(32, 4, **{"qkv_bias": True, **changes})
    whole.attn.fused_attn = fused
    last = copy.deepcopy(whole)
    take_num_outputs(last)
    x = torch.randn(3, 9, 32)
    results = []
    for block, arguments in ((whole, ()), (last, (2,))):
        tokens = x.clone().requires_grad_()
        outputs = block(tokens, *arguments)[:, :2]
        outputs.square().sum().backward()
        gradients = [weight.grad for weight in block.parameters()]
        results.append([outputs, tokens.grad, *gradients])
    assert can_leave_out(last)
    assert last(x, 2).shape == (3, 2, 32)
    torch.testing.assert_close(*results)
    torch.testing.assert_close(last(x), whole(x))


def test_last_block_of_another_kind_is_computed_whole() -> None:
    block = ParallelThingsBlock(32, 4)
    expected = block(torch.ones(1, 9, 32))
    take_num_outputs(block)
    assert not can_leave_out(block)
    assert torch.equal(block(torch.ones(1, 9, 32), 2), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("checkpoint_activations", [False, True])
def test_compiled_blocks_compute_the_same_under_the_same_names(
    monkeypatch: pytest.MonkeyPatch, checkpoint_activations: bool
) -> None:
    """The eager backend replaces the compiler, which needs a minute and C++."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = randomise(build_model(small_settings(), num_classes=3, num_mels=64))
    shape = small_settings(compile=True, checkpoint_activations=checkpoint_activations)
    compiled = build_model(shape, num_classes=3, num_mels=64)
    compiled.load_state_dict(plain.state_dict())
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 64, 64)
    torch._dynamo.reset()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for model in (compiled, plain):
        model(x).square().sum().backward()
    for ours, expected in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deit_tiny_distilled_patch16_22", ["deit_tiny_distilled_patch16_224"]),
        ("resnet18", ["deit_", "vit_"]),
        ("deit_tiny_distilled_patch16_224.no_such_tag", ["deit_tiny_distilled_patch16_224"]),
    ],
)
def test_backbones_missing_in_timm_are_refused(name: str, values: list[str]) -> None:
    with refused("model.backbone", *values, f"got {name!r}"):
        check_backbone(name)
    check_backbone("deit_tiny_distilled_patch16_224.fb_in1k")
