"""Checkpoints of transformers: a folder of weights, `config.json`, `preprocessor_config.json`."""

from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline import storage
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from trainer.checkpoints.ast_checkpoint import (
    NUM_MELS,
    PATCH,
    AstCheckpoint,
    check_positive,
    patch_settings,
    require_head,
    size_settings,
)
from trainer.checkpoints.names import from_transformers_state
from trainer.checkpoints.state_files import State, read_state

Document = TypeVar("Document")

_HEAD_WIDTH = 64
"""Width of an attention head in every DeiT and in the ViTs up to large."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """The fields used of a `config.json` of transformers, with its defaults."""

    hidden_size: int = 768
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    patch_size: int = PATCH
    frequency_stride: int = 10
    time_stride: int = 10
    max_length: int = 1024
    num_mel_bins: int = NUM_MELS
    id2label: dict[str, Any] = field(default_factory=dict)
    problem_type: Any = None

    def __post_init__(self) -> None:
        check_positive(
            {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        )
        # Neither shows in the shape of a weight.
        width, heads = self.hidden_size, self.num_attention_heads
        if width != heads * _HEAD_WIDTH or self.hidden_act != "gelu":
            raise ValueError(
                f"must have hidden_act gelu and an attention head for each {_HEAD_WIDTH} of "
                f"hidden_size, as DeiT has; got {self.hidden_act}, {heads} and {width}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Features:
    """The fields used of a `preprocessor_config.json` of transformers."""

    sampling_rate: int = 16_000
    do_normalize: bool = True
    mean: float | None = None
    std: float | None = None

    def __post_init__(self) -> None:
        ours = FbankSettings().sample_rate_hz
        if self.sampling_rate != ours:
            raise ValueError(
                f"the model was trained at {self.sampling_rate} Hz, the data is at {ours} Hz"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"needs both mean and std or neither, got {self.mean}, {self.std}")
        if self.std is not None and self.std <= 0:
            raise ValueError(f"std: must be above 0, got {self.std}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardIndex:
    """A `model.safetensors.index.json` of transformers."""

    weight_map: dict[str, str]
    """The file of each weight."""


def read_transformers_folder(path: str) -> AstCheckpoint:
    """The checkpoint in a folder that `save_pretrained` wrote."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = storage.join(path, name)
        if storage.exists(file):
            return from_transformers(file, read_state(file), path)
        if storage.exists(f"{file}.index.json"):
            return from_transformers(path, _read_shards(path, f"{file}.index.json"), path)
    raise UserError(path, "has a config.json, but no model.safetensors or pytorch_model.bin")


def _read_shards(folder: str, index: str) -> State:
    """A state dict that is split over several files of a folder."""
    state: State = {}
    for name in sorted(set(_read(index, _ShardIndex).weight_map.values())):
        state |= read_state(storage.join(folder, name))
    return state


def from_transformers(source: str, state: State, folder: str) -> AstCheckpoint:
    """The checkpoint of a state dict; the folder has its settings."""
    config = _read_config(folder, source)
    ours = from_transformers_state(state, source)
    require_head(ours, source)
    names = [config.id2label.get(str(row)) for row in range(len(ours["head.bias"]))]
    labels = [name for name in names if isinstance(name, str)]
    is_named = len(labels) == len(names)
    is_made_up = labels == [f"LABEL_{row}" for row in range(len(labels))]
    mean, std = _read_norm(storage.join(folder, "preprocessor_config.json"))
    losses = {"multi_label_classification": "bce", "single_label_classification": "ce"}
    return AstCheckpoint(
        source=source,
        state=ours,
        model={
            **size_settings(ours),
            **dict.fromkeys(("layer_norm_eps", "head_norm_eps"), config.layer_norm_eps),
            **patch_settings(
                config.patch_size,
                config.frequency_stride,
                config.time_stride,
                config.max_length,
            ),
        },
        num_mels=config.num_mel_bins,
        labels=labels if is_named and not is_made_up else None,
        mean=mean,
        std=std,
        loss=losses.get(str(config.problem_type)),
    )


def _read_norm(path: str) -> tuple[float | None, float | None]:
    """Mean and standard deviation in a `preprocessor_config.json`; None of both without one."""
    if not storage.exists(path):
        return None, None
    features = _read(path, _Features)
    # With these, (x - mean) / (2 std) is x.
    return (features.mean, features.std) if features.do_normalize else (0.0, 0.5)


def _read_config(folder: str, source: str) -> _Config:
    try:
        return _read(storage.join(folder, "config.json"), _Config)
    except FileNotFoundError as error:
        raise UserError(source, "no config.json beside it", "give the whole folder") from error


def _read(path: str, kind: type[Document]) -> Document:
    return storage.read_document(path, kind, "download it again")
