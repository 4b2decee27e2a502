"""Renames the weights of an AST from and to the names of other implementations.

In: a state dict of the AST authors' code or of transformers. Out: one that `trainer.model.ast.AST`
loads; or the reverse, for transformers. Shapes and values are not checked here.
"""

import re
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from pipeline.errors import UserError
from trainer.checkpoints.state_files import State, name_list

IMAGE_CLASSIFIERS = ("head.", "head_dist.")
"""Prefixes of the image classifiers in files of timm's DeiT and ViT, which an AST has not."""

_TRANSFORMERS_PREFIX = "audio_spectrogram_transformer."
_TRANSFORMERS_EMBEDDINGS = {
    "audio_spectrogram_transformer.embeddings.cls_token": "cls_token",
    "audio_spectrogram_transformer.embeddings.distillation_token": "dist_token",
    "audio_spectrogram_transformer.embeddings.position_embeddings": "pos_embed",
}
_TRANSFORMERS_MODULES = {
    "audio_spectrogram_transformer.embeddings.patch_embeddings.projection": "patch_embed",
    "audio_spectrogram_transformer.layernorm": "norm",
    "classifier.layernorm": "head_norm",
    "classifier.dense": "head",
}
_TRANSFORMERS_BLOCK = re.compile(
    r"audio_spectrogram_transformer\.(?:encoder\.layer|layers)\.(\d+)\.(.+)"
)
# Left the names on disk (those of version 4), right those in memory since version 5.
_TRANSFORMERS_BLOCK_MODULES = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    **dict.fromkeys(("attention.attention.query", "attention.q_proj"), "attn.q"),
    **dict.fromkeys(("attention.attention.key", "attention.k_proj"), "attn.k"),
    **dict.fromkeys(("attention.attention.value", "attention.v_proj"), "attn.v"),
    **dict.fromkeys(("attention.output.dense", "attention.o_proj"), "attn.proj"),
    **dict.fromkeys(("intermediate.dense", "mlp.fc1"), "mlp.fc1"),
    **dict.fromkeys(("output.dense", "mlp.fc2"), "mlp.fc2"),
}
_QUERY = re.compile(r"(blocks\.\d+\.attn)\.[qkv]\.(weight|bias)")


def is_authors_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the AST authors' code."""
    return any(name.startswith(("v.", "mlp_head.")) for name in state)


def from_authors_state(state: Mapping[str, Tensor], source: str) -> State:
    """The state dict of `trainer.model.ast.AST` from one of the AST authors' code.

    Drops DeiT's unused image classifiers.

    Raises:
        UserError: a name that does not belong to such a model.
    """
    unused = tuple(f"v.{name}" for name in IMAGE_CLASSIFIERS)
    used = {name: value for name, value in state.items() if not name.startswith(unused)}
    prefixes = {
        "v.patch_embed.proj.": "patch_embed.",
        "mlp_head.0.": "head_norm.",
        "mlp_head.1.": "head.",
        "v.": "",
    }
    ours, unknown = {}, set()
    for name, value in used.items():
        prefix = next(filter(name.startswith, prefixes), None)
        if prefix is None:
            unknown.add(name)
        else:
            ours[prefixes[prefix] + name.removeprefix(prefix)] = value
    if unknown:
        raise UserError(
            source, f"not the weights of the authors' AST: {name_list('unexpected', unknown)}"
        )
    return ours


def is_transformers_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of `ASTForAudioClassification`."""
    return any(name.startswith(_TRANSFORMERS_PREFIX) for name in state)


def from_transformers_state(
    state: Mapping[str, Tensor], source: str = "state dict of transformers"
) -> State:
    """The state dict of `trainer.model.ast.AST` from one of `ASTForAudioClassification`.

    Reads both styles of names: those on disk, from version 4, and those in memory since version 5.
    Separate query, key and value matrices become one [3 D, D], as in timm. Shapes are not checked
    here; the LayerNorm eps is not part of a state dict.

    Raises:
        UserError: a name that does not belong to such a model, a duplicate weight, or a block
            that lacks its query, key or value.
    """
    unknown = {name for name in state if _from_transformers_name(name) is None}
    if unknown:
        raise UserError(
            source,
            f"not the weights of an ASTForAudioClassification: {name_list('unexpected', unknown)}",
        )
    ours: State = {}
    for name, value in state.items():
        target = cast(str, _from_transformers_name(name))
        if target in ours:
            raise UserError(source, f"{name}: the same weight twice, under names of two versions")
        ours[target] = value
    return _fuse_query_key_value(ours, source)


def to_transformers_state(state: Mapping[str, Tensor]) -> State:
    """The state dict of `ASTForAudioClassification`, named as on disk, from one of our AST."""
    theirs: State = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, matrix in zip("qkv", value.chunk(3), strict=True):
                # Chunks share memory, which safetensors refuses to write.
                theirs[_to_transformers_name(name.replace("qkv", part))] = matrix.clone()
        else:
            theirs[_to_transformers_name(name)] = value
    return theirs


def _to_transformers_name(name: str) -> str:
    for theirs, ours in _TRANSFORMERS_EMBEDDINGS.items():
        if name == ours:
            return theirs
    module, _, leaf = name.rpartition(".")
    for theirs, ours in _TRANSFORMERS_MODULES.items():
        if module == ours:
            return f"{theirs}.{leaf}"
    _, number, part = module.split(".", 2)
    # The first of a part's two names is the one on disk.
    on_disk = next(key for key, ours in _TRANSFORMERS_BLOCK_MODULES.items() if ours == part)
    return f"{_TRANSFORMERS_PREFIX}encoder.layer.{number}.{on_disk}.{leaf}"


def _from_transformers_name(name: str) -> str | None:
    if name in _TRANSFORMERS_EMBEDDINGS:
        return _TRANSFORMERS_EMBEDDINGS[name]
    module, _, leaf = name.rpartition(".")
    if leaf not in ("weight", "bias"):
        return None
    if module in _TRANSFORMERS_MODULES:
        return f"{_TRANSFORMERS_MODULES[module]}.{leaf}"
    match = _TRANSFORMERS_BLOCK.fullmatch(module)
    if match is None or match[2] not in _TRANSFORMERS_BLOCK_MODULES:
        return None
    return f"blocks.{match[1]}.{_TRANSFORMERS_BLOCK_MODULES[match[2]]}.{leaf}"


def _fuse_query_key_value(state: State, source: str) -> State:
    fused: State = {}
    for name, value in state.items():
        match = _QUERY.fullmatch(name)
        if match is None:
            fused[name] = value
            continue
        parts = [f"{match[1]}.{part}.{match[2]}" for part in "qkv"]
        missing = [part for part in parts if part not in state]
        if missing:
            raise UserError(
                source, f"incomplete query, key and value: {name_list('missing', missing)}"
            )
        fused[f"{match[1]}.qkv.{match[2]}"] = torch.cat([state[part] for part in parts])
    return fused
