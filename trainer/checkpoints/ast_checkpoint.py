"""Reads checkpoints of whole ASTs, whoever trained them, under our names.

In: a file or folder, local or on S3: the authors' `.pth`, a folder of transformers, a run folder,
or what `trainer.exchange.export_run` writes. Steps: detect the format, read tensors only, rename
them, work out patch grid, classes and normalisation. Out: an `AstCheckpoint`; or, from a file of a
timm backbone, its state dict. `trainer.model.build` fits either to a recipe's model.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pipeline import storage
from pipeline.errors import SettingValueError, UserError
from pipeline.fbank_settings import PUBLISHED_NORMS, FbankSettings
from trainer.checkpoints.checkpoint import load_last
from trainer.checkpoints.fit import check_values
from trainer.checkpoints.names import (
    from_authors_state,
    from_transformers_state,
    is_authors_state,
    is_transformers_state,
)
from trainer.checkpoints.patch_grid import patches_along, shortest_axis
from trainer.checkpoints.state_files import State, read_metadata, read_state

Document = TypeVar("Document")

METADATA_KEY = "ast_ray"
"""Key of the model's description, as JSON, in the header of an `ast.safetensors`."""
EXPORTED_NAME = "ast.safetensors"

_BACKBONES = {
    192: "deit_tiny_distilled_patch16_224",
    384: "deit_small_distilled_patch16_224",
    768: "deit_base_distilled_patch16_384",
}
"""Backbones of the authors' code and of transformers, by their width D; each has 12 blocks."""
_NUM_BLOCKS = 12
_HEAD_WIDTH = 64
"""Width of an attention head in every DeiT and in the ViTs up to large."""
_NUM_MELS = 128
_PATCH = 16
_STRIDES = (10, 12, 14, 16)
_LENGTHS = (1024, 512, 128)
"""Strides and target lengths of the authors' runs; the number of patches identifies the pair."""
_NUM_AUDIOSET = 527
_HEAD_NDIMS = {"pos_embed": 3, "head.weight": 2, "head.bias": 1}
"""Weights that tell a whole AST from a backbone, with their numbers of dimensions."""
# fmt: off
_SPEECH_COMMANDS = (
    "backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog",
    "stop", "seven", "eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow",
    "no", "nine", "off", "three", "left", "marvin", "yes", "up", "sheila", "happy", "bird", "go",
    "one",
)
"""Order of the classes in the authors' Speech Commands model (their class_labels_indices)."""
# fmt: on


@dataclass(frozen=True, kw_only=True, slots=True)
class _PatchGrid:
    """The fields of `ModelSettings` that decide the number of patches."""

    patch_frequency: int
    patch_time: int
    stride_frequency: int
    stride_time: int
    num_frames: int

    def __post_init__(self) -> None:
        _check_positive(asdict(self))


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

    def __post_init__(self) -> None:
        _check_positive({"num_mels": self.num_mels})


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunData:
    num_mels: int = _NUM_MELS
    labels: list[str]
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _RunSettings:
    model: dict[str, Any]
    train: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """The part of a run's `run.json` that describes its model."""

    data: _RunData
    settings: _RunSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """The fields used of a `config.json` of transformers, with its defaults."""

    hidden_size: int = 768
    num_attention_heads: int = 12
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    patch_size: int = _PATCH
    frequency_stride: int = 10
    time_stride: int = 10
    max_length: int = 1024
    num_mel_bins: int = _NUM_MELS
    id2label: dict[str, Any] = field(default_factory=dict)
    problem_type: Any = None

    def __post_init__(self) -> None:
        _check_positive(
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

    def __post_init__(self) -> None:
        check_values(self.state, self.source)
        num_classes = len(self.state["head.bias"])
        if self.labels is not None and len(self.labels) != num_classes:
            raise UserError(
                self.source,
                f"the head has {num_classes} classes, but its settings name {len(self.labels)}",
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
        return _grid(self.model, self.num_mels)

    @property
    def num_class_tokens(self) -> int:
        """P: entries of the positional embedding before those of the patches."""
        return 2 if "dist_token" in self.state else 1

    def head_rows(self, num_classes: int, labels: Sequence[str] | None) -> list[int] | None:
        """Row of its head for each of our classes; None if it lacks some of them.

        Classes are matched by name; if either side has no names, by their order, if there are as
        many: everybody has AudioSet's in the order of its class_labels_indices.csv.
        """
        if self.labels is None or labels is None:
            fits = num_classes == len(self.state["head.bias"])
            return list(range(num_classes)) if fits else None
        row_of = {label: row for row, label in enumerate(self.labels)}
        return None if missing_labels(self, labels) else [row_of[label] for label in labels]


def missing_labels(checkpoint: AstCheckpoint, labels: Sequence[str]) -> list[str]:
    """Our classes that the checkpoint does not name; none if it names no classes at all."""
    known = set(labels if checkpoint.labels is None else checkpoint.labels)
    return [label for label in labels if label not in known]


def read_weights(path: str, like: Mapping[str, Any]) -> AstCheckpoint | State:
    """The checkpoint of an AST, or else a timm backbone's state dict, from a file or folder.

    Args:
        path: a run folder (its newest checkpoint); a folder of transformers or one that `export`
            wrote; or a `.safetensors`, `.pth`, `.pt` or `.bin` file. Local or `s3://`.
        like: settings of the recipe's model: the patch grid, if neither the shapes nor the name of
            an authors' file tell it.

    Raises:
        UserError: the path holds no such weights, or they are damaged or of another model.
    """
    for name, read in (
        ("run.json", _read_run),
        (EXPORTED_NAME, _read_exported_folder),
        ("config.json", _read_transformers),
    ):
        if storage.exists(storage.join(path, name)):
            return read(path)
    state = read_state(path)
    if is_authors_state(state):
        return _from_authors(path, from_authors_state(state, path), like)
    if is_transformers_state(state):
        return _from_transformers(path, state, path.rpartition("/")[0])
    if "head_norm.weight" in state:
        return _from_own(path, state, _exported(path), path)
    return state


def metadata(
    model: Mapping[str, Any],
    *,
    num_mels: int,
    labels: Sequence[str],
    mean: float,
    std: float,
    loss: str,
) -> dict[str, str]:
    """Header metadata of an `ast.safetensors`."""
    settings = _Exported(
        model=dict(model), num_mels=num_mels, labels=list(labels), mean=mean, std=std, loss=loss
    )
    return {METADATA_KEY: json.dumps(asdict(settings))}


def _read_run(path: str) -> AstCheckpoint:
    file = storage.join(path, "run.json")
    run = _read(file, _Run)
    saved = load_last(path)
    settings = _Exported(
        model=run.settings.model,
        num_mels=run.data.num_mels,
        labels=run.data.labels,
        mean=run.data.mean,
        std=run.data.std,
        loss=run.settings.train["loss"],
    )
    return _from_own(path, saved.model, settings, file)


def _read_exported_folder(path: str) -> AstCheckpoint:
    file = storage.join(path, EXPORTED_NAME)
    return _from_own(file, read_state(file), _exported(file), file)


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
    _require_head(state, source)
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
    )


def _from_authors(path: str, state: State, like: Mapping[str, Any]) -> AstCheckpoint:
    _require_head(state, path)
    num_classes = len(state["head.bias"])
    is_speech = num_classes == len(_SPEECH_COMMANDS)
    norms = {
        _NUM_AUDIOSET: PUBLISHED_NORMS["AudioSet"],
        len(_SPEECH_COMMANDS): PUBLISHED_NORMS["Speech Commands V2"],
    }
    mean, std = norms.get(num_classes, (None, None))
    return AstCheckpoint(
        source=path,
        state=state,
        model={**_size(state), **_authors_grid(state, path, like)},
        num_mels=_NUM_MELS,
        labels=list(_SPEECH_COMMANDS) if is_speech else None,
        mean=mean,
        std=std,
        # The models of both published data sets were trained with it.
        loss="bce" if num_classes in norms else None,
    )


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
        if math.prod(_grid(candidate, _NUM_MELS)) == num_patches:
            return candidate
    raise UserError(
        path,
        f"cannot infer the strides from its {num_patches} patches",
        "set model.stride_frequency, model.stride_time and model.num_frames to those it was "
        "trained with",
    )


def _square(stride: int, num_frames: int) -> dict[str, int]:
    return _shape(_PATCH, stride, stride, num_frames)


def _shape(patch: int, stride_frequency: int, stride_time: int, num_frames: int) -> dict[str, int]:
    return {
        "patch_frequency": patch,
        "patch_time": patch,
        "stride_frequency": stride_frequency,
        "stride_time": stride_time,
        "num_frames": num_frames,
    }


def _named_grid(stride_frequency: int, stride_time: int, num_patches: int) -> list[dict[str, int]]:
    """The shape of the shortest input with `num_patches` at these strides, if there is one."""
    if not (1 <= stride_frequency <= _PATCH and 1 <= stride_time <= _PATCH):
        return []
    columns = num_patches // patches_along(_NUM_MELS, _PATCH, stride_frequency)
    num_frames = shortest_axis(columns, _PATCH, stride_time)
    return [_shape(_PATCH, stride_frequency, stride_time, num_frames)] if columns else []


def _read_transformers(path: str) -> AstCheckpoint:
    for name in ("model.safetensors", "pytorch_model.bin"):
        file = storage.join(path, name)
        if storage.exists(file):
            return _from_transformers(file, read_state(file), path)
        if storage.exists(f"{file}.index.json"):
            return _from_transformers(path, _read_shards(path, f"{file}.index.json"), path)
    raise UserError(path, "has a config.json, but no model.safetensors or pytorch_model.bin")


def _read_shards(folder: str, index: str) -> State:
    """A state dict that is split over several files of a folder."""
    state: State = {}
    for name in sorted(set(_read(index, _ShardIndex).weight_map.values())):
        state |= read_state(storage.join(folder, name))
    return state


def _from_transformers(source: str, state: State, folder: str) -> AstCheckpoint:
    config = _read_config(folder, source)
    ours = from_transformers_state(state, source)
    _require_head(ours, source)
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
            **_size(ours),
            **dict.fromkeys(("layer_norm_eps", "head_norm_eps"), config.layer_norm_eps),
            **_shape(
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


def _require_head(state: State, source: str) -> None:
    missing = [name for name in _HEAD_NDIMS if name not in state]
    if missing:
        raise UserError(source, "not a whole AST", f"missing: {', '.join(missing)}")
    for name, ndim in _HEAD_NDIMS.items():
        if state[name].ndim != ndim:
            shape = list(state[name].shape)
            raise UserError(source, f"{name}: must have {ndim} dimensions, got {shape}")
    if len(state["head.weight"]) != len(state["head.bias"]):
        raise UserError(source, "head.weight and head.bias differ in the number of classes")


def _check_positive(values: Mapping[str, int]) -> None:
    for name, value in values.items():
        if value < 1:
            raise SettingValueError(name, f"must be above 0, got {value}")


def _size(state: State) -> dict[str, Any]:
    """Settings of backbone, if known, and depth, from the names and shapes."""
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    backbone = _BACKBONES.get(state["pos_embed"].shape[2])
    settings = {} if backbone is None else {"backbone": backbone}
    return {**settings, "depth": 0 if len(blocks) == _NUM_BLOCKS else len(blocks)}


def _grid(model: Mapping[str, Any], num_mels: int) -> tuple[int, int]:
    return (
        patches_along(num_mels, model["patch_frequency"], model["stride_frequency"]),
        patches_along(model["num_frames"], model["patch_time"], model["stride_time"]),
    )
