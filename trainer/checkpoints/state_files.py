"""Files of tensors: `.safetensors`, `.pth`, `.pt` or `.bin`, local or on S3.

In: a path, or tensors by name. Steps: read tensors only, never pickled objects; verify the
checksum, if the file has one. Out: a state dict, or the bytes of a file.
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
"""Key of the tensors' checksum in the header of a `.safetensors` file."""
_WRAPPERS = ("model", "state_dict")
"""Keys of the state dict in files of DeiT and of Lightning."""
_PREFIXES = ("module.", "model.", "net.")
"""Prefixes of common wrappers of a model; `module.` is DDP's."""
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
"""Torch's error for an object that loads by running code."""


def encode_state(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A `.safetensors` file of tensors on the CPU, with a checksum that `read_state` checks."""
    return safetensors.torch.save(
        dict(state), {**metadata, _CHECKSUM_KEY: _checksum(state, metadata)}
    )


def read_metadata(path: str) -> dict[str, str]:
    """The metadata in the header of a `.safetensors` file."""
    # The safetensors library reads tensors from bytes, but metadata only from local files.
    with storage.explained(path):
        size = storage.with_retries(storage.read_range, path, 0, 8)
        num_bytes = int.from_bytes(size, "little")
        return _metadata(storage.with_retries(storage.read_range, path, 8, num_bytes))


def read_state(path: str) -> State:
    """Tensors by name from a `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Wrapper prefixes such as `module.` are removed if all names have them.

    Args:
        path: local or in a bucket. Files other than `.safetensors` hold a state dict saved by
            torch, or a dict with the state dict under "model" or "state_dict".

    Raises:
        UserError: the file is missing, has another suffix, is damaged, or holds other objects than
            tensors.
    """
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        if not storage.exists(path) and not storage.holds_files(path):
            raise UserError(path, "no such file or folder of weights")
        raise UserError(
            path,
            "not weights: a file of weights ends in .safetensors, .pth, .pt or .bin, and a folder "
            "of weights has a run.json, a config.json or an ast.safetensors",
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
        # Files from other programs, and from earlier versions of this one, have none.
        if expected is not None and expected != _checksum(state, texts):
            raise UserError(
                path,
                "damaged (its tensors do not match the checksum in its header)",
                "restore it from a copy, or use other weights of the same run",
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
        raise UserError(path, f"expected a state dict; {name_list('not tensors', others)}")
    not_strings = {repr(name) for name in content if not isinstance(name, str)}
    if not_strings:
        raise UserError(path, f"expected a state dict; {name_list('not names', not_strings)}")
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


def name_list(problem: str, names: Iterable[str]) -> str:
    """Names of tensors for a message, `problem: a, b and 3 more`; empty without names."""
    ordered = sorted(names)
    if not ordered:
        return ""
    rest = len(ordered) - _NUM_NAMES_SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return f"{problem}: {', '.join(ordered[:_NUM_NAMES_SHOWN])}{more}"


def _why_unreadable(error: Exception) -> str:
    """The reason; not in torch's words, which advise to run whatever code the file holds."""
    if isinstance(error, SafetensorError):
        return first_line(error)
    refused = _REFUSED.search(str(error))
    if refused:
        return f"it holds a pickled {refused[1]}, and loading one could run code"
    return "damaged, or not saved by torch.save"
