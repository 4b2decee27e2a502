"""A recipe: all settings of a run, from a TOML file and `--set` overrides.

Sections are the settings classes of the modules that own them. What a recipe leaves out has the
default written there; what it names and nobody knows is an error that suggests the nearest key.
"""

import dataclasses
import difflib
import math
import re
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from pipeline import storage
from pipeline.errors import UserError
from trainer.checkpoints.averaging import AveragingSettings
from trainer.data.augment import AugmentSettings
from trainer.data.clips import ClipSet, DataSettings, TrainingData
from trainer.data.loader import LoaderSettings
from trainer.data.sampler import MAX_SEED, SamplerSettings
from trainer.model.ast import ModelSettings
from trainer.model.build import build_model
from trainer.model.precision import Precision
from trainer.optim.loss import Loss
from trainer.optim.optimiser import OptimiserSettings
from trainer.optim.schedule import ScheduleSettings

Sharding = Literal["replicate", "shard"]
Selection = Literal["", "accuracy", "mAP"]
_NOTHING: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """Length of the run, size of its batches, and how often it is looked at and saved."""

    loss: Loss = "bce"
    """`bce` for multi-label data, `ce` for one label a clip."""
    epochs: int = 5
    """Number of epochs."""
    batch_size: int = 12
    """Clips in a global batch, shared out among the workers."""
    seed: int = 0
    """Decides the first weights, the order of the clips and every augmentation."""
    precision: Precision = "float32"
    """`bfloat16` or `float16`: autocast, in evaluation too, as in the authors' code; weights,
    optimiser and the head stay float32. `float16` scales the loss and skips the first steps until
    the scale fits. CPUs without instructions for them are many times slower in either."""
    micro_batch_size: int = 0
    """Clips that a worker computes at once, for less memory, in evaluation too; 0: all its share of
    the batch. The batch, the schedule and the losses stay the same."""
    sharding: Sharding = "replicate"
    """`replicate`: every worker holds the whole model. `shard`: each holds its part of weights,
    gradients and optimiser, for models that take too much memory. It may change between starts."""
    max_gradient_norm: float = 0.0
    """A step whose gradient's norm is above this is skipped, as one is that is not finite;
    0: no limit. Gradients are never clipped."""
    max_bad_steps: int = 10
    """So many skipped steps in a row are a divergence: the run goes back to its last checkpoint
    once, then it stops; before its first checkpoint it stops at once."""
    lr_after_divergence: float = 1.0
    """What the learning rate is multiplied by once the run has gone back."""
    select_by: Selection = ""
    """Also keep the weights of the epoch with the highest `accuracy` or `mAP` on the evaluation
    clips, the first of equal ones, and score them at the end; empty: no epoch is selected."""
    log_every_steps: int = 20
    """Steps between two points of the loss curve."""
    checkpoint_every_s: float = 300.0
    """Longest time between checkpoints within an epoch, in seconds; each epoch ends with one."""

    def __post_init__(self) -> None:
        for name, kind in (
            ("loss", Loss),
            ("precision", Precision),
            ("sharding", Sharding),
            ("select_by", Selection),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name}: must be one of {get_args(kind)}, got {getattr(self, name)!r}"
                )
        for name in ("epochs", "batch_size", "log_every_steps", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed: must be from 0 to {MAX_SEED}, got {self.seed}")
        for name in ("checkpoint_every_s", "max_gradient_norm", "micro_batch_size"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}: must be a number of at least 0, got {getattr(self, name)}"
                )
        if not 0 < self.lr_after_divergence <= 1:
            raise ValueError(
                f"lr_after_divergence: must be above 0 and at most 1, "
                f"got {self.lr_after_divergence}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedSettings:
    """Scores that others published for these settings: `report` draws them beside the run's."""

    mAP: tuple[float, ...] = ()  # noqa: N815
    """mAP on the evaluation clips after each epoch; empty: none is published."""
    mAUC: tuple[float, ...] = ()  # noqa: N815
    """mAUC, likewise."""
    accuracy: tuple[float, ...] = ()
    """Accuracy from 0 to 1, likewise."""

    def __post_init__(self) -> None:
        for one in fields(self):
            values = getattr(self, one.name)
            if not all(0 <= value <= 1 for value in values):
                raise ValueError(f"{one.name}: must be numbers from 0 to 1, got {list(values)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings of one run."""

    name: str
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    published: PublishedSettings = field(default_factory=PublishedSettings)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Every setting with its value, by section; NaN as null."""
        return {
            section: {key: _plain(value) for key, value in dataclasses.asdict(settings).items()}
            for section, settings in self._sections()
        }

    def _sections(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in SECTIONS]


SECTIONS: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Recipe).items() if kind is not str
}


def load_recipe(
    path: str, overrides: Sequence[str] = (), *, beneath: Mapping[str, Mapping[str, Any]] = _NOTHING
) -> Recipe:
    """Read a recipe file and apply overrides of the form `section.key=value`.

    Args:
        path: the file; empty: none, which is a recipe that sets nothing.
        overrides: go over what the file sets.
        beneath: sections of keys for what neither sets, in place of the defaults.

    Raises:
        UserError: the file is not there or not TOML; a section or key is unknown; a value is of
            the wrong type or out of range.
    """
    document = _read_document(path) if path else {}
    name = path.rpartition("/")[2].removesuffix(".toml") if path else "imported"
    # First by itself, so that what is wrong with the file is not said of the overrides.
    recipe = make_recipe(name, _over(document, beneath), where=path or name)
    if overrides:
        for override in overrides:
            section, key, value = _parse_override(override)
            document.setdefault(section, {})[key] = value
        try:
            recipe = make_recipe(name, _over(document, beneath), where="--set")
        except UserError as error:
            raise UserError(_blame(str(error), overrides)) from error
    # Workers have other working folders.
    model, loader = recipe.model, recipe.loader
    if model.weights_file:
        model = replace(model, weights_file=storage.absolute(model.weights_file))
    if loader.cache_folder:
        loader = replace(loader, cache_folder=storage.absolute(loader.cache_folder))
    return replace(recipe, model=model, loader=loader)


def _blame(message: str, overrides: Sequence[str]) -> str:
    """A message about overrides that names those of the key it is about, or else of its section.

    Of a key that is overridden twice it names the last.
    """
    what = message.removeprefix("--set:")
    about = re.match(r"\s*(?:no key )?(([a-z_]+\.)[a-z_]+)", what)
    named = list(overrides)
    if about:
        by_key = {one.partition("=")[0].strip(): one for one in overrides}
        key, section = about.groups()
        of_section = [one for name, one in by_key.items() if name.startswith(section)]
        named = [by_key[key]] if key in by_key else of_section or named
    return f"{' '.join(f'--set {one}' for one in named)}:{what}"


def _read_document(path: str) -> dict[str, Any]:
    storage.check_bucket(path)
    try:
        return tomllib.loads(storage.read_bytes(path).decode())
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such recipe (a .toml file)") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file ({error})") from error


def _over(document: Mapping[str, Any], beneath: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The document's keys, and those beneath that it does not have."""
    merged = dict(document)
    for section, keys in beneath.items():
        above = merged.get(section, {})
        # A value where a section should stand is left for the check that says so.
        merged[section] = {**keys, **above} if isinstance(above, Mapping) else above
    return merged


def make_recipe(name: str, document: Mapping[str, Any], *, where: str) -> Recipe:
    """Settings from sections of keys, null standing for NaN; raises as `load_recipe`.

    `where` is what messages call the place the settings come from.
    """
    unknown = [section for section in document if section not in SECTIONS]
    if unknown:
        raise UserError(f"{where}: no section [{unknown[0]}]{_near(unknown[0], SECTIONS)}")
    sections = {
        section: _make_section(section, kind, document.get(section, {}), where)
        for section, kind in SECTIONS.items()
    }
    return Recipe(name=name, **sections)


def check_fit(recipe: Recipe, data: TrainingData) -> None:
    """Refuse settings that these clips cannot be trained with.

    Raises:
        UserError: a mask, patch or bucket larger than the input, more blocks than the backbone
            has, a backbone that is no plain transformer, an average over epochs that the
            run does not have, or cross-entropy on clips that have no or several labels.
    """
    for key in ("first_epoch", "last_epoch"):
        epoch = getattr(recipe.averaging, key)
        if epoch > recipe.train.epochs:
            raise UserError(
                f"averaging.{key}: must be at most train.epochs ({recipe.train.epochs}), "
                f"got {epoch}"
            )
    mels = ("the number of mel bins", data.train.num_mels)
    frames = ("model.num_frames", recipe.model.num_frames)
    for key, value, (axis, size) in (
        ("augment.frequency_mask", recipe.augment.frequency_mask, mels),
        ("augment.time_mask", recipe.augment.time_mask, frames),
        ("model.patch_frequency", recipe.model.patch_frequency, mels),
    ):
        if value > size:
            raise UserError(f"{key}: must be at most {axis} ({size}), got {value}")
    shortest, edges = recipe.model.patch_time, recipe.sampler.bucket_frames
    if any(not shortest <= edge < recipe.model.num_frames for edge in edges):
        raise UserError(
            f"sampler.bucket_frames: must be at least model.patch_time ({shortest}) and below "
            f"model.num_frames ({recipe.model.num_frames}), got {list(edges)}"
        )
    # On no device, the model costs neither memory nor a download.
    with torch.device("meta"):
        build_model(
            recipe.model.without_weights(),
            num_classes=len(data.train.labels),
            num_mels=data.train.num_mels,
        )
    if recipe.train.loss == "ce":
        for clips in (data.train, data.evaluation):
            _check_single_label(clips)


def _check_single_label(clips: ClipSet) -> None:
    for clip_id, labels in zip(clips.ids, clips.label_indices, strict=True):
        if len(set(labels)) != 1:
            raise UserError(
                f"train.loss: 'ce' is for clips with one label, but clip {clip_id!r} of "
                f"{clips.name!r} has {len(set(labels))}; take 'bce'"
            )


def _make_section(section: str, kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: {section} is a section, not a value; write [{section}]")
    hints = get_type_hints(kind)
    arguments = {}
    for key, value in values.items():
        if key not in hints:
            raise UserError(f"{where}: no key {section}.{key}{_near(key, hints, section)}")
        arguments[key] = _convert(value, hints[key], f"{where}: {section}.{key}")
    try:
        return kind(**arguments)
    except ValueError as error:
        raise UserError(f"{where}: {section}.{error}") from error


def _convert(value: Any, hint: Any, name: str) -> Any:
    """The value as the field's type; nothing is converted but whole numbers to floats."""
    if hint is float and value is None:
        return math.nan
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_convert(one, get_args(hint)[0], name) for one in value)
    expected = str if get_origin(hint) is Literal else hint
    if type(value) is expected:
        return value
    raise UserError(f"{name}: must be {_describe(hint)}, got {value!r}")


def _describe(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if isinstance(hint, types.GenericAlias):
        return "a list, each of it " + _describe(get_args(hint)[0])
    return words[hint]


def _parse_override(override: str) -> tuple[str, str, Any]:
    """`section.key=value`, the value as TOML would write it, or a bare word for a text."""
    path, equals, text = override.partition("=")
    section, dot, key = path.strip().partition(".")
    if not (equals and dot and section and key):
        raise UserError(f"--set {override}: must be section.key=value, such as train.epochs=10")
    try:
        return section, key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return section, key, text.strip()


def _near(word: str, known: Mapping[str, Any], section: str = "") -> str:
    """A hint: the same key of another section, the nearest one of this, or all there are."""
    if section:
        for name, kind in SECTIONS.items():
            if word in get_type_hints(kind):
                return f"; did you mean {name}.{word}?"
    prefix = f"{section}." if section else ""
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean {prefix}{close[0]}?"
    return f"; there are: {', '.join(known)}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return list(value) if isinstance(value, tuple) else value
