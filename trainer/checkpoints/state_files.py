"""Files of tensors: `.safetensors`, `.pth`, `.pt` or `.bin`, local or on S3.

In: a path, or tensors by name. Steps: read tensors only, never pickled objects; check them against
the checksum, where the file has one. Out: a state dict, or the bytes of a file.
"""

import io
import json
import re
import zlib
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline import storage
from pipeline.errors import UserError, first_line

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
        raise UserError(path, "expected a state dict", f"{name_list('not tensors', others)}")
    unnamed = {repr(name) for name in content if not isinstance(name, str)}
    if unnamed:
        raise UserError(path, "expected a state dict", f"{name_list('not names', unnamed)}")
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


def name_list(what: str, names: Iterable[str]) -> str:
    """Names of tensors for a message, `what: a, b`, the first of many; empty if there are none."""
    ordered = sorted(names)
    if not ordered:
        return ""
    rest = len(ordered) - _NUM_NAMES_SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{what}: {', '.join(ordered[:_NUM_NAMES_SHOWN])}{more}"


def _why_unreadable(error: Exception) -> str:
    """Not in torch's words, which advise to run whatever code the file holds."""
    if isinstance(error, SafetensorError):
        return first_line(error)
    refused = _REFUSED.search(str(error))
    if refused:
        return f"it holds a pickled {refused[1]}, and no code of a file is run"
    return "damaged, or not saved by torch.save"
