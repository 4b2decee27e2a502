"""The checkpoint of a whole AST, whoever trained it, under our names.

In: a state dict and what is known of the model. Out: an `AstCheckpoint`, which
`trainer.model.build` fits to the model that a recipe asks for. `read_weights` makes them from
files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import SettingValueError, UserError
from pipeline.terminal.units import counted
from trainer.checkpoints.audioset_classes import other_name
from trainer.checkpoints.fit import check_values
from trainer.checkpoints.patch_grid import patches_along
from trainer.checkpoints.state_files import State

NUM_MELS = 128
"""Mel bins of every published AST."""
PATCH = 16
"""Frames and mel bins of a patch of every published AST."""

_BACKBONES = {
    192: "deit_tiny_distilled_patch16_224.fb_in1k",
    384: "deit_small_distilled_patch16_224.fb_in1k",
    768: "deit_base_distilled_patch16_384.fb_in1k",
}
"""Backbones of the authors' code and of transformers, by their width D; each has 12 blocks."""
_NUM_BLOCKS = 12
_HEAD_NDIMS = {"pos_embed": 3, "head.weight": 2, "head.bias": 1}
"""Weights that tell a whole AST from a backbone, with their numbers of dimensions."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AstCheckpoint:
    """An AST's weights and description.

    Raises:
        UserError: the positional embedding or the head does not fit the settings, or weights are
            not finite floats.
    """

    source: str
    """Path that it was read from."""
    state: State
    """Under the names of `trainer.model.ast.AST`."""
    model: dict[str, Any]
    """Its known `ModelSettings`; strides, patch shape and length always."""
    num_mels: int
    labels: list[str] | None
    """Names of its classes in order; None: unknown."""
    mean: float | None
    std: float | None
    """Normalisation of its inputs; None: unknown."""
    loss: str | None
    """`bce`, `ce`, or None: unknown."""
    scores: str = ""
    """What makes scores of its outputs, `sigmoid` or `softmax`; empty: as usual for its loss."""

    def __post_init__(self) -> None:
        check_values(self.state, self.source)
        num_classes = len(self.state["head.bias"])
        if self.labels is not None and len(self.labels) != num_classes:
            raise UserError(
                self.source,
                f"the head has {counted(num_classes, 'class', 'classes')}, but its settings name "
                f"{len(self.labels)}",
            )
        shape, (rows, columns) = list(self.state["pos_embed"].shape), self.grid
        if shape[:2] != [1, self.num_class_tokens + rows * columns]:
            raise UserError(
                self.source,
                f"the positional embedding is {shape}, but its settings imply "
                f"{self.num_class_tokens} class tokens and {rows} x {columns} patches",
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches in frequency and in time, (f, t)."""
        return patch_grid(self.model, self.num_mels)

    @property
    def num_class_tokens(self) -> int:
        """P: entries of the positional embedding before those of the patches."""
        return 2 if "dist_token" in self.state else 1

    def head_rows(self, num_classes: int, labels: Sequence[str] | None) -> list[int] | None:
        """Row of its head for each of our classes; None if it lacks some of them.

        Classes are matched by name, AudioSet's also by machine id; if either side has no names, by
        their order, if there are as many.
        """
        if self.labels is None or labels is None:
            fits = num_classes == len(self.state["head.bias"])
            return list(range(num_classes)) if fits else None
        row_of = _row_of(self.labels)
        return None if missing_labels(self, labels) else [row_of[label] for label in labels]


def missing_labels(checkpoint: AstCheckpoint, labels: Sequence[str]) -> list[str]:
    """Our classes that the checkpoint does not name; none if it names no classes at all."""
    if checkpoint.labels is None:
        return []
    row_of = _row_of(checkpoint.labels)
    return [label for label in labels if label not in row_of]


def _row_of(labels: Sequence[str]) -> dict[str, int]:
    """Index of each class by its name and, for AudioSet's, by its other name."""
    others = {other_name(label): row for row, label in enumerate(labels)}
    names = {label: row for row, label in enumerate(labels)}
    return {**{name: row for name, row in others.items() if name is not None}, **names}


def patch_settings(
    patch: int, stride_frequency: int, stride_time: int, num_frames: int
) -> dict[str, int]:
    """The `ModelSettings` of square patches and an input length."""
    return {
        "patch_frequency": patch,
        "patch_time": patch,
        "stride_frequency": stride_frequency,
        "stride_time": stride_time,
        "num_frames": num_frames,
    }


def patch_grid(model: Mapping[str, Any], num_mels: int) -> tuple[int, int]:
    """Patches in frequency and in time, (f, t), of a model of these `ModelSettings`."""
    return (
        patches_along(num_mels, model["patch_frequency"], model["stride_frequency"]),
        patches_along(model["num_frames"], model["patch_time"], model["stride_time"]),
    )


def size_settings(state: State) -> dict[str, Any]:
    """Settings of backbone, if known, and depth, from the names and shapes."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    backbone = _BACKBONES.get(state["pos_embed"].shape[2])
    settings = {} if backbone is None else {"backbone": backbone}
    return {**settings, "depth": 0 if len(blocks) == _NUM_BLOCKS else len(blocks)}


def require_head(state: State, source: str) -> None:
    """Refuse a state dict that is not of a whole AST; `source` is where it was read."""
    missing = [name for name in _HEAD_NDIMS if name not in state]
    if missing:
        raise UserError(source, "not a whole AST", f"missing: {', '.join(missing)}")
    for name, ndim in _HEAD_NDIMS.items():
        if state[name].ndim != ndim:
            shape = list(state[name].shape)
            raise UserError(source, f"{name}: must have {ndim} dimensions, got {shape}")
    if len(state["head.weight"]) != len(state["head.bias"]):
        raise UserError(source, "head.weight and head.bias differ in the number of classes")


def check_positive(values: Mapping[str, int]) -> None:
    """Refuse settings, by their names, that are not above 0."""
    for name, value in values.items():
        if value < 1:
            raise SettingValueError(name, f"must be above 0, got {value}")
