"""Weights from outside and to it: timm's hub, files of tensors, other implementations' names.

In: a timm model name, a file (`.safetensors`, `.pth`, `.pt` or `.bin`, local or on S3) or another
implementation's state dict. Steps: read tensors only (never pickled objects), rename, check every
name and shape. Out: a backbone with its weights, or a state dict that `trainer.model.AST` loads;
and the way back to the names of transformers.
Nothing is loaded in part: a name too many, too few or of another shape is an error that says so.
"""

import io
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import UserError

State = dict[str, Tensor]

_NUM_NAMES_SHOWN = 4
_CLASSIFIERS = ("head.", "head_dist.")
"""Image classifiers of timm's DeiT and ViT: in their files, never in an AST."""

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


def create_from_hub(backbone: str) -> nn.Module:
    """A timm backbone with its published weights, from the hub or its local cache.

    Args:
        backbone: timm model name, with or without a tag ("deit_base_distilled_patch16_384").

    Raises:
        UserError: no weights are published for it, or they could not be fetched.
    """
    client = logging.getLogger("huggingface_hub")
    level = client.level
    # It tells of every second try; what ends the last of them is said below.
    client.setLevel(logging.ERROR)
    try:
        return cast(nn.Module, timm.create_model(backbone, pretrained=True, num_classes=0))
    # The hub client, the HTTP library below it and the file readers share no base class.
    except Exception as error:
        source = timm.get_pretrained_cfg(backbone).hf_hub_id or backbone
        raise UserError(
            f"model.pretrained: could not fetch the weights {source}: {_first_line(error)}; give "
            "model.weights_file a copy of them (.safetensors, .pth or .pt), or set "
            "model.pretrained=false to train from random weights"
        ) from error
    finally:
        client.setLevel(level)


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Put a timm state dict into a timm backbone made without classifier, in place.

    Args:
        backbone: made by timm with `num_classes=0`.
        state: the image classifiers in it (`head`, `head_dist`) are left out.
        source: where the state dict comes from, for the error.

    Raises:
        UserError: its names or shapes are not the backbone's.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(_CLASSIFIERS)}
    load_exactly(backbone, kept, source=source)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict of which every name and shape must fit, in place.

    Args:
        source: where the state dict comes from, for the error.

    Raises:
        UserError: names the missing, the unexpected and those of another shape.
    """
    expected = module.state_dict()
    problems = [
        _listing("missing", expected.keys() - state.keys()),
        _listing("unexpected", state.keys() - expected.keys()),
        _listing("of another shape", _shape_differences(expected, state)),
    ]
    if any(problems):
        raise UserError(
            f"{source}: the weights do not fit the model: {'; '.join(filter(None, problems))}"
        )
    module.load_state_dict(state)


def read_state(path: str) -> State:
    """Tensors by name from a `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Args:
        path: local or `s3://`. All but `.safetensors` hold the state dict as torch saves it, or, as
            those of DeiT do, a dict with the state dict under "model".

    Raises:
        UserError: no such file, another suffix, damaged, or with anything but tensors in it.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UserError(
            f"{path}: a file of weights ends in .safetensors, .pth, .pt or .bin, and a folder of "
            "them has a run.json, a config.json or an ast.safetensors"
        )
    data = _read_bytes(path)
    try:
        content = (
            safetensors.torch.load(data)
            if suffix == ".safetensors"
            else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        )
    # Both readers raise several unrelated types for a damaged file or one with pickled objects.
    except Exception as error:
        raise UserError(
            f"{path}: not a readable file of tensors ({_first_line(error)}); save the bare state "
            "dict, as .safetensors or with torch.save"
        ) from error
    return _tensors_only(content, path)


def is_authors_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the AST authors' code."""
    return any(name.removeprefix("module.").startswith(("v.", "mlp_head.")) for name in state)


def from_authors_state(state: Mapping[str, Tensor], source: str) -> State:
    """The state dict of `trainer.model.AST` from one of the AST authors' code.

    The names may have the `module.` of data-parallel training before them. The image classifiers
    of DeiT, which their files carry and nothing uses, are left out.

    Raises:
        UserError: a name that is no part of such a model.
    """
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    unused = tuple(f"v.{name}" for name in _CLASSIFIERS)
    used = {name: value for name, value in bare.items() if not name.startswith(unused)}
    prefixes = {
        "v.patch_embed.proj.": "patch_embed.",
        "mlp_head.0.": "head_norm.",
        "mlp_head.1.": "head.",
        "v.": "",
    }
    ours, unknown = {}, set()
    for name, value in used.items():
        prefix = next((one for one in prefixes if name.startswith(one)), None)
        if prefix is None:
            unknown.add(name)
        else:
            ours[prefixes[prefix] + name.removeprefix(prefix)] = value
    if unknown:
        raise UserError(
            f"{source}: not the weights of the authors' AST: {_listing('unexpected', unknown)}"
        )
    return ours


def is_transformers_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of `ASTForAudioClassification`."""
    return any(name.startswith(_TRANSFORMERS_PREFIX) for name in state)


def from_transformers_state(
    state: Mapping[str, Tensor], source: str = "state dict of transformers"
) -> State:
    """The state dict of `trainer.model.AST` from one of `ASTForAudioClassification`.

    Both styles of names are read: those on disk, which are version 4's, and those in memory since
    version 5. Query, key and value, apart in transformers, become one matrix [3 D, D], as in timm.
    The shapes are not checked here; the LayerNorm eps is no part of a state dict.

    Raises:
        UserError: a name that is no part of such a model, the same weight twice, or a block
            without one of query, key and value.
    """
    unknown = {name for name in state if _from_transformers_name(name) is None}
    if unknown:
        raise UserError(
            f"{source}: not the weights of an ASTForAudioClassification: "
            f"{_listing('unexpected', unknown)}"
        )
    ours: State = {}
    for name, value in state.items():
        target = cast(str, _from_transformers_name(name))
        if target in ours:
            raise UserError(
                f"{source}: {name}: the same weight is there twice, under two styles of names"
            )
        ours[target] = value
    return _fuse_query_key_value(ours, source)


def to_transformers_state(state: Mapping[str, Tensor]) -> State:
    """The state dict of `ASTForAudioClassification`, named as on disk, from one of our AST."""
    theirs: State = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, matrix in zip("qkv", value.chunk(3), strict=True):
                # Parts of one tensor share their memory, which safetensors does not write.
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
    # The first of the two names that stand for a part is the one on disk.
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
                f"{source}: query, key and value belong together: {_listing('missing', missing)}"
            )
        fused[f"{match[1]}.qkv.{match[2]}"] = torch.cat([state[part] for part in parts])
    return fused


def _read_bytes(path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file of weights") from error


def _tensors_only(content: Any, path: str) -> State:
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path}: expected a state dict, found {type(content).__name__}")
    others = {str(name) for name, value in content.items() if not isinstance(value, Tensor)}
    if others:
        raise UserError(f"{path}: expected a state dict; {_listing('not tensors', others)}")
    return cast(State, content)


def _shape_differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]


def _listing(what: str, names: Iterable[str]) -> str:
    ordered = sorted(names)
    if not ordered:
        return ""
    rest = len(ordered) - _NUM_NAMES_SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{what}: {', '.join(ordered[:_NUM_NAMES_SHOWN])}{more}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
