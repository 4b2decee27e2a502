"""Checkpoints of our own: a run folder, or the `ast.safetensors` that `export` writes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline import storage
from pipeline.errors import UserError
from trainer.checkpoints.ast_checkpoint import (
    NUM_MELS,
    AstCheckpoint,
    check_positive,
    require_head,
)
from trainer.checkpoints.checkpoint import load_last
from trainer.checkpoints.state_files import State, read_metadata, read_state

METADATA_KEY = "ast_ray"
"""Key of the model's description, as JSON, in the header of an `ast.safetensors`."""
EXPORTED_NAME = "ast.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Exported:
    """Description of a model in the header of an `ast.safetensors`, as `metadata` writes it."""

    format_version: int = 1
    model: dict[str, Any]
    num_mels: int
    labels: list[str]
    mean: float
    std: float
    loss: str
    scores: Literal["", "sigmoid", "softmax"] = ""
    """Empty: as usual for the loss, and in files of older versions."""

    def __post_init__(self) -> None:
        check_positive({"num_mels": self.num_mels})


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunData:
    num_mels: int = NUM_MELS
    labels: list[str]
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunTraining:
    loss: str
    scores: Literal["", "sigmoid", "softmax"] = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunSettings:
    model: dict[str, Any]
    train: _RunTraining


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """The part of a run's `run.json` that describes its model."""

    data: _RunData
    settings: _RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class _PatchGrid:
    """The fields of `ModelSettings` that decide the number of patches."""

    patch_frequency: int
    patch_time: int
    stride_frequency: int
    stride_time: int
    num_frames: int

    def __post_init__(self) -> None:
        check_positive(asdict(self))


def metadata(
    model: Mapping[str, Any],
    *,
    num_mels: int,
    labels: Sequence[str],
    mean: float,
    std: float,
    loss: str,
    scores: Literal["", "sigmoid", "softmax"] = "",
) -> dict[str, str]:
    """Header metadata of an `ast.safetensors`."""
    settings = _Exported(
        model=dict(model),
        num_mels=num_mels,
        labels=list(labels),
        mean=mean,
        std=std,
        loss=loss,
        scores=scores,
    )
    return {METADATA_KEY: json.dumps(asdict(settings))}


def read_run_folder(path: str) -> AstCheckpoint:
    """The newest checkpoint of a run."""
    file = storage.join(path, "run.json")
    run = storage.read_document(file, _Run, "restore it")
    saved = load_last(path)
    settings = _Exported(
        model=run.settings.model,
        num_mels=run.data.num_mels,
        labels=run.data.labels,
        mean=run.data.mean,
        std=run.data.std,
        loss=run.settings.train.loss,
        scores=run.settings.train.scores,
    )
    return _from_own(path, saved.model, settings, file)


def read_exported_folder(path: str) -> AstCheckpoint:
    """The checkpoint in a folder that `export` wrote."""
    file = storage.join(path, EXPORTED_NAME)
    return from_exported(file, read_state(file))


def from_exported(path: str, state: State) -> AstCheckpoint:
    """The checkpoint of a state dict that was read from an exported file."""
    return _from_own(path, state, _exported(path), path)


def _exported(path: str) -> _Exported:
    text = None
    if path.lower().endswith(".safetensors"):
        text = read_metadata(path).get(METADATA_KEY)
    if text is None:
        raise UserError(
            path,
            "the weights of an AST without its settings",
            f"give the run folder, or the {EXPORTED_NAME} that `export` writes",
        )
    try:
        return storage.parse_document(text, _Exported)
    except storage.DocumentError as error:
        raise UserError(
            path, f"{METADATA_KEY} in its header is damaged: {error}", "export the run again"
        ) from error


def _from_own(source: str, state: State, settings: _Exported, where: str) -> AstCheckpoint:
    require_head(state, source)
    try:
        storage.conform(settings.model, _PatchGrid)
    except storage.DocumentError as error:
        raise UserError(where, f"the settings of its model are damaged: {error}") from error
    # How its weights were initialised is no part of a trained model.
    initial = ("pretrained", "weights_file", "position_embedding")
    return AstCheckpoint(
        source=source,
        state=state,
        model={key: value for key, value in settings.model.items() if key not in initial},
        num_mels=settings.num_mels,
        labels=settings.labels,
        mean=settings.mean,
        std=settings.std,
        loss=settings.loss,
        scores=settings.scores,
    )
