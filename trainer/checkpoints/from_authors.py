"""Checkpoints of the AST authors: a `.pth`, whose settings show only in its shapes and its name."""

import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.fbank_settings import PUBLISHED_NORMS
from trainer.checkpoints.ast_checkpoint import (
    NUM_MELS,
    PATCH,
    AstCheckpoint,
    patch_grid,
    patch_settings,
    require_head,
    size_settings,
)
from trainer.checkpoints.audioset_classes import NUM_AUDIOSET_CLASSES, audioset_names
from trainer.checkpoints.patch_grid import patches_along, shortest_axis
from trainer.checkpoints.state_files import State

_STRIDES = (10, 12, 14, 16)
_LENGTHS = (1024, 512, 128)
"""Strides and target lengths of the authors' runs; the number of patches identifies the pair."""
# fmt: off
_SPEECH_COMMANDS = (
    "backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog",
    "stop", "seven", "eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow",
    "no", "nine", "off", "three", "left", "marvin", "yes", "up", "sheila", "happy", "bird", "go",
    "one",
)
"""Order of the classes in the authors' Speech Commands model (their class_labels_indices)."""
# fmt: on


def from_authors(path: str, state: State, like: Mapping[str, Any]) -> AstCheckpoint:
    """The checkpoint of a state dict; `like` is as for `read_weights`."""
    require_head(state, path)
    num_classes = len(state["head.bias"])
    norms = {
        NUM_AUDIOSET_CLASSES: PUBLISHED_NORMS["AudioSet"],
        len(_SPEECH_COMMANDS): PUBLISHED_NORMS["Speech Commands V2"],
    }
    mean, std = norms.get(num_classes, (None, None))
    return AstCheckpoint(
        source=path,
        state=state,
        model={**size_settings(state), **_authors_grid(state, path, like)},
        num_mels=NUM_MELS,
        labels=_labels(num_classes),
        mean=mean,
        std=std,
        # The models of both published data sets were trained with it.
        loss="bce" if num_classes in norms else None,
    )


def _labels(num_classes: int) -> list[str] | None:
    """Names of the classes of a published data set, which is known by their number."""
    if num_classes == NUM_AUDIOSET_CLASSES:
        return audioset_names()
    return list(_SPEECH_COMMANDS) if num_classes == len(_SPEECH_COMMANDS) else None


def _authors_grid(state: State, path: str, like: Mapping[str, Any]) -> dict[str, int]:
    """Strides and input length that fit the number of positions.

    Tries those of the published models, then strides in the file's name
    ("audioset_10_10_0.4593.pth"), then the recipe's.
    """
    num_patches = state["pos_embed"].shape[1] - 2
    candidates = [_square(stride, length) for stride in _STRIDES for length in _LENGTHS]
    for strides in re.findall(r"_(\d{1,2})_(\d{1,2})_", path.rpartition("/")[2]):
        candidates += _named_grid(int(strides[0]), int(strides[1]), num_patches)
    candidates.append({key: like[key] for key in candidates[0]})
    for candidate in candidates:
        if math.prod(patch_grid(candidate, NUM_MELS)) == num_patches:
            return candidate
    raise UserError(
        path,
        f"cannot infer the strides from its {num_patches} patches",
        "set model.stride_frequency, model.stride_time and model.num_frames to those it was "
        "trained with",
    )


def _square(stride: int, num_frames: int) -> dict[str, int]:
    return patch_settings(PATCH, stride, stride, num_frames)


def _named_grid(stride_frequency: int, stride_time: int, num_patches: int) -> list[dict[str, int]]:
    """The shape of the shortest input with `num_patches` at these strides, if there is one."""
    if not (1 <= stride_frequency <= PATCH and 1 <= stride_time <= PATCH):
        return []
    columns = num_patches // patches_along(NUM_MELS, PATCH, stride_frequency)
    num_frames = shortest_axis(columns, PATCH, stride_time)
    return [patch_settings(PATCH, stride_frequency, stride_time, num_frames)] if columns else []
