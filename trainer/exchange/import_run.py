"""Imports a trained model as a run: the step `import`.

In: a checkpoint of a whole AST, whoever trained it, and a data set with classes that it knows.
Steps: read the checkpoint, take the settings from it, adapt it to them. Out: a run folder as
training leaves it, to evaluate, average and report.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.checkpoints.ast_checkpoint import AstCheckpoint, missing_labels
from trainer.checkpoints.checkpoint import Checkpoint, save_checkpoint
from trainer.checkpoints.progress import Progress
from trainer.checkpoints.read_weights import read_weights
from trainer.data.clips import select_training_data
from trainer.model.build import build_model, load_ast
from trainer.optim.optimiser import make_optimiser
from trainer.recipe.model_fit import check_fit
from trainer.recipe.parse import load_recipe, make_recipe
from trainer.recipe.recipe import SECTIONS
from trainer.run.history import write_history
from trainer.run.run_folder import check_empty, check_folder, describe_run, write_run

_logger = logging.getLogger(__name__)

_IN_EFFECT = re.compile(
    r"(data|loader|published)\..*|train\.(loss|scores|batch_size|seed)|sampler\.bucket_frames|"
    r"augment\.(frequency|time)_mask|"
    r"model\.(?!pretrained|position_embedding|patchout|checkpoint_activations).*"
)
"""Settings that evaluation, ensembles (the seed), the report or the checks of a recipe (masks) use;
all others concern only training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """Classes of an imported checkpoint."""

    num_classes: int
    """Classes of the run."""
    num_classes_left_out: int
    """Classes of the checkpoint that the data set does not have."""
    by_name: bool
    """Whether classes were matched by name; else by their order."""


def import_run(
    source: str, dataset_path: str, run_path: str, recipe_path: str, overrides: Sequence[str]
) -> Imported:
    """Create a finished run with zero steps from a checkpoint.

    Args:
        source: see `trainer.checkpoints.read_weights`.
        recipe_path: settings of the run; empty: none. The checkpoint provides those left out, and
            is adapted to another input length or stride.
        overrides: see `trainer.recipe.parse.load_recipe`; not of settings that only training uses.

    Raises:
        UserError: the checkpoint or the data set does not exist; the data set has classes or a
            number of mel bins that the checkpoint has not; the folder holds a run already; an
            override has no effect.
    """
    _check_overrides(overrides)
    check_folder(run_path, own="")
    # An interrupted import leaves these.
    check_empty(run_path, but=frozenset({"checkpoints", "history.json"}))
    dataset = open_dataset(dataset_path)
    plain = load_recipe(recipe_path, overrides)
    checkpoint = read_weights(source, asdict(plain.model))
    if not isinstance(checkpoint, AstCheckpoint):
        raise UserError(
            source,
            "not a whole AST",
            f"if it is a timm backbone, train it by --set model.weights_file={source}",
        )
    rows = _rows(checkpoint, dataset)
    settings = _settings_of(checkpoint)
    # First without the recipe, so that an error in the checkpoint names the checkpoint.
    make_recipe("imported", settings, where=checkpoint.source)
    if not recipe_path:
        settings["model"]["pretrained"] = False
    recipe = load_recipe(recipe_path, overrides, defaults=settings)
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    if math.isnan(recipe.data.mean):
        _logger.warning(
            "%s: does not state its normalisation; using the data set's: "
            "data.mean=%.4f, data.std=%.4f",
            *(source, data.mean, data.std),
        )
    model = build_model(
        recipe.model.without_weights(), num_classes=len(dataset.labels), num_mels=dataset.num_mels
    )
    load_ast(model, checkpoint, replace(recipe.model, position_embedding="adapt"), rows=rows)
    optimiser = make_optimiser(model.parameters(), recipe.optimiser).state_dict()
    progress = Progress(epoch=recipe.train.epochs + 1)
    state = model.state_dict()
    save_checkpoint(run_path, Checkpoint(model=state, optimiser=optimiser, progress=progress))
    write_history(run_path, progress, finished=True)
    info = describe_run(recipe, dataset, data, model.num_parameters())
    untrained = replace(info.data, num_train_clips=0)
    write_run(run_path, replace(info, data=untrained, imported_from=source))
    return Imported(
        num_classes=len(rows),
        num_classes_left_out=len(checkpoint.state["head.bias"]) - len(rows),
        by_name=checkpoint.labels is not None,
    )


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        name = override.partition("=")[0].strip()
        section, _, key = name.partition(".")
        if name == "model.weights_file":
            raise UserError(f"--set {override}", "the weights come from the checkpoint")
        # `load_recipe` rejects unknown settings.
        is_known = key in getattr(SECTIONS.get(section), "__slots__", ())
        if is_known and not _IN_EFFECT.fullmatch(name):
            raise UserError(
                f"--set {override}", "has no effect without training", "drop this --set"
            )


def _settings_of(checkpoint: AstCheckpoint) -> dict[str, dict[str, Any]]:
    """The settings that a checkpoint determines."""
    settings: dict[str, dict[str, Any]] = {
        "model": dict(checkpoint.model),
        # Nothing is trained, and masks for AudioSet's length do not fit shorter inputs.
        "augment": {"frequency_mask": 0, "time_mask": 0},
    }
    if checkpoint.mean is not None and checkpoint.std is not None:
        settings["data"] = {"mean": checkpoint.mean, "std": checkpoint.std}
    if checkpoint.loss is not None:
        settings["train"] = {"loss": checkpoint.loss}
        if checkpoint.scores:
            settings["train"]["scores"] = checkpoint.scores
    return settings


def _rows(checkpoint: AstCheckpoint, dataset: PreparedDataset) -> list[int]:
    rows = checkpoint.head_rows(len(dataset.labels), dataset.labels)
    if rows is not None:
        return rows
    missing = missing_labels(checkpoint, dataset.labels)
    reason = (
        f"it lacks {len(missing)} of the data set's {len(dataset.labels)} classes: "
        f"{', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
        if missing
        else f"it has {counted(len(checkpoint.state['head.bias']), 'class', 'classes')} without "
        f"names, the data set {len(dataset.labels)}"
    )
    raise UserError(checkpoint.source, f"cannot score {dataset.path}: {reason}")
