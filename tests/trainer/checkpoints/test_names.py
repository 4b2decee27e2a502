"""The names of transformers, whose models are compared in `tests/trainer/model/test_ast.py`."""

import json

import pytest
import torch

from tests.support.errors import refused
from trainer.checkpoints.names import from_transformers_state
from trainer.checkpoints.state_files import State

PREFIX = "audio_spectrogram_transformer"


def projections(styles: list[str], value: float = 0.0) -> State:
    return {
        f"{PREFIX}.{name}.{leaf}": torch.full((2, 2) if leaf == "weight" else (2,), value + index)
        for index, name in enumerate(styles)
        for leaf in ("weight", "bias")
    }


ON_DISK = [f"encoder.layer.11.attention.attention.{name}" for name in ("value", "query", "key")]
IN_MEMORY = [f"layers.11.attention.{name}_proj" for name in "vqk"]


@pytest.mark.parametrize("styles", [ON_DISK, IN_MEMORY])
def test_query_key_and_value_are_merged_in_order(styles: list[str]) -> None:
    given = projections(styles)
    names = json.dumps(list(given))
    ours = from_transformers_state(given)
    assert sorted(ours) == ["blocks.11.attn.qkv.bias", "blocks.11.attn.qkv.weight"]
    assert ours["blocks.11.attn.qkv.bias"].tolist() == [1, 1, 2, 2, 0, 0]
    assert ours["blocks.11.attn.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 0, 0]
    assert json.dumps(list(given)) == names


def test_missing_projection_is_named() -> None:
    given = projections(ON_DISK)
    del given[f"{PREFIX}.encoder.layer.11.attention.attention.key.bias"]
    with refused("state dict of transformers", "missing: blocks.11.attn.k.bias"):
        from_transformers_state(given)


def test_duplicate_weight_in_both_styles_is_refused() -> None:
    name = "audio_spectrogram_transformer.layers.11.attention.v_proj.weight"
    with refused("state dict of transformers", name, "twice"):
        from_transformers_state(projections(ON_DISK) | projections(IN_MEMORY))


@pytest.mark.parametrize(
    "name",
    [
        "wav2vec2.encoder.layers.0.attention.q_proj.weight",
        f"{PREFIX}.layers.0.attention.r_proj.weight",
        f"{PREFIX}.layers.0.attention.q_proj.scale",
        f"{PREFIX}.layers.x.attention.q_proj.weight",
        f"{PREFIX}.embeddings.mask_token",
    ],
)
def test_weight_names_of_another_model_are_refused(name: str) -> None:
    given = projections(IN_MEMORY) | {name: torch.zeros(1)}
    with refused("state dict of transformers", f"unexpected: {name}"):
        from_transformers_state(given)
