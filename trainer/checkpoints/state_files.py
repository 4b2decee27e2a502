"""Weights from outside and to it: timm's hub, files of tensors, other implementations' names.

In: a timm model name, a file (`.safetensors`, `.pth`, `.pt` or `.bin`, local or on S3) or another
implementation's state dict. Steps: read tensors only (never pickled objects), rename, check every
name and shape. Out: a backbone with its weights, or a state dict that `trainer.model.ast.AST`
loads; and the way back to the names of transformers.
Nothing is loaded in part: a name too many, too few or of another shape is an error that says so.
"""

import io
import json
import logging
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import UserError

State = dict[str, Tensor]

_NUM_NAMES_SHOWN = 4
_CHECKSUM_KEY = "crc32"
"""Where the header of a `.safetensors` file has the checksum of its tensors."""
_WRAPPERS = ("model", "state_dict")
"""Where DeiT's files and those of Lightning keep the state dict."""
_PREFIXES = ("module.", "model.", "net.")
"""Names of modules that a model is often wrapped in: the first by data-parallel training."""
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
"""What torch says of an object that it would have to run code for."""
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
        return timm.create_model(backbone, pretrained=True, num_classes=0)
    # The hub client, the HTTP library below it and the file readers share no base class.
    except Exception as error:
        published = timm.get_pretrained_cfg(backbone)
        source = (published and published.hf_hub_id) or backbone
        raise UserError(
            "model.pretrained",
            f"could not fetch the weights {source}: {_first_line(error)}",
            "give model.weights_file a copy of them (.safetensors, .pth or .pt), or set "
            "model.pretrained=false to train from random weights",
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
        UserError: its names or shapes are not the backbone's, or its values no finite floats.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(_CLASSIFIERS)}
    check_values(kept, source)
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
            source, f"the weights do not fit the model: {'; '.join(filter(None, problems))}"
        )
    module.load_state_dict(state)


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that no model computes with.

    Raises:
        UserError: names the first that is not of floats, or not finite in float32.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(source, f"{name}: must be of floats, got {kind}", "save it as float32")
        if not value.float().isfinite().all():
            raise UserError(
                source,
                f"{name}: holds NaN or infinite numbers",
                "take a checkpoint from before the training diverged",
            )


def encode_state(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A `.safetensors` file of tensors on the CPU, with a checksum that `read_state` checks."""
    return safetensors.torch.save(
        dict(state), {**metadata, _CHECKSUM_KEY: _checksum(state, metadata)}
    )


def read_metadata(path: str) -> dict[str, str]:
    """The texts in the header of a whole `.safetensors` file."""
    # The safetensors library gives tensors from bytes, but the metadata only of local files.
    num_bytes = int.from_bytes(storage.read_range(path, 0, 8), "little")
    return _metadata(storage.read_range(path, 8, num_bytes))


def read_state(path: str) -> State:
    """Tensors by name from a `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Prefixes that all names have, as `module.`, are left out.

    Args:
        path: local or `s3://`. All but `.safetensors` hold the state dict as torch saves it, or a
            dict with the state dict under "model" or "state_dict".

    Raises:
        UserError: no such file, another suffix, damaged, or with anything but tensors in it.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise UserError(
            path,
            "a file of weights ends in .safetensors, .pth, .pt or .bin, and a folder of them "
            "has a run.json, a config.json or an ast.safetensors",
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
            path,
            f"not a readable file of tensors ({_why_unreadable(error)})",
            "save the state dict by torch.save(model.state_dict(), PATH), or as .safetensors",
        ) from error
    state = _without_prefixes(_tensors_only(content, path))
    if suffix == ".safetensors":
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        texts = _metadata(header)
        expected = texts.pop(_CHECKSUM_KEY, None)
        # Files of others, and of this program's earlier versions, have none.
        if expected is not None and expected != _checksum(state, texts):
            raise UserError(
                path,
                "damaged (it does not have the checksum in its header)",
                "restore it from a copy, or take other weights of the same run",
            )
    return state


def is_authors_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of the AST authors' code."""
    return any(name.startswith(("v.", "mlp_head.")) for name in state)


def from_authors_state(state: Mapping[str, Tensor], source: str) -> State:
    """The state dict of `trainer.model.ast.AST` from one of the AST authors' code.

    The image classifiers of DeiT, which their files carry and nothing uses, are left out.

    Raises:
        UserError: a name that is no part of such a model.
    """
    unused = tuple(f"v.{name}" for name in _CLASSIFIERS)
    used = {name: value for name, value in state.items() if not name.startswith(unused)}
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
            source, f"not the weights of the authors' AST: {_listing('unexpected', unknown)}"
        )
    return ours


def is_transformers_state(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of `ASTForAudioClassification`."""
    return any(name.startswith(_TRANSFORMERS_PREFIX) for name in state)


def from_transformers_state(
    state: Mapping[str, Tensor], source: str = "state dict of transformers"
) -> State:
    """The state dict of `trainer.model.ast.AST` from one of `ASTForAudioClassification`.

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
            source,
            f"not the weights of an ASTForAudioClassification: {_listing('unexpected', unknown)}",
        )
    ours: State = {}
    for name, value in state.items():
        target = cast(str, _from_transformers_name(name))
        if target in ours:
            raise UserError(
                source, f"{name}: the same weight is there twice, under two styles of names"
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
                source, f"query, key and value belong together: {_listing('missing', missing)}"
            )
        fused[f"{match[1]}.qkv.{match[2]}"] = torch.cat([state[part] for part in parts])
    return fused


def _read_bytes(path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(path, "no such file of weights") from error


def _tensors_only(content: Any, path: str) -> State:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise UserError(path, f"expected a state dict, found {type(content).__name__}")
    others = {str(name) for name, value in content.items() if not isinstance(value, Tensor)}
    if others:
        raise UserError(path, "expected a state dict", f"{_listing('not tensors', others)}")
    unnamed = {repr(name) for name in content if not isinstance(name, str)}
    if unnamed:
        raise UserError(path, "expected a state dict", f"{_listing('not names', unnamed)}")
    return cast(State, content)


def _without_prefixes(state: State) -> State:
    for prefix in _PREFIXES:
        while all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _metadata(header: bytes) -> dict[str, str]:
    return json.loads(header).get("__metadata__") or {}


def _checksum(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    total = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(state):
        flat = state[name].detach().contiguous().reshape(-1)
        total = zlib.crc32(flat.view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


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


def _why_unreadable(error: Exception) -> str:
    """Not in torch's words, which advise to run whatever code the file holds."""
    if isinstance(error, SafetensorError):
        return _first_line(error)
    refused = _REFUSED.search(str(error))
    if refused:
        return f"it holds a pickled {refused[1]}, and no code of a file is run"
    return "damaged, or not saved by torch.save"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
