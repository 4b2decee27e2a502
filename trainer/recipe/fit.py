"""Checks that a recipe fits its clips, and that a run of it would learn anything.

Loads no PyTorch: `trainer.recipe.model_fit` checks the model, too.
"""

import numpy as np

from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.data.clips import ClipSet, TrainingData
from trainer.data.sampler import steps_per_epoch
from trainer.recipe.recipe import Recipe


def check_settings(recipe: Recipe, data: TrainingData) -> None:
    """Reject settings that do not fit these clips.

    Raises:
        UserError: a mask, patch or bucket larger than the input, an average over epochs that the
            run does not have, cross-entropy on clips that have no or several labels, or a best
            epoch of clips without any label.
    """
    for key in ("first_epoch", "last_epoch"):
        epoch = getattr(recipe.averaging, key)
        if epoch > recipe.train.epochs:
            raise UserError(
                f"averaging.{key}",
                f"must be at most train.epochs ({recipe.train.epochs}), got {epoch}",
            )
    mels = ("the number of mel bins", data.train.num_mels)
    frames = ("model.num_frames", recipe.model.num_frames)
    for key, value, (axis, size) in (
        ("augment.frequency_mask", recipe.augment.frequency_mask, mels),
        ("augment.time_mask", recipe.augment.time_mask, frames),
        ("model.patch_frequency", recipe.model.patch_frequency, mels),
    ):
        if value > size:
            raise UserError(key, f"must be at most {axis} ({size}), got {value}")
    shortest, edges = recipe.model.patch_time, recipe.sampler.bucket_frames
    if any(not shortest <= edge < recipe.model.num_frames for edge in edges):
        raise UserError(
            "sampler.bucket_frames",
            f"must be at least model.patch_time ({shortest}) and below model.num_frames "
            f"({recipe.model.num_frames}), got {list(edges)}",
        )
    if recipe.train.loss == "ce":
        for clips in (data.train, data.evaluation):
            _check_single_label(clips)
    if recipe.train.select_by and not len(data.evaluation.label_indices.classes):
        raise UserError(
            "train.select_by",
            f"no clip of {data.evaluation.name!r} has a label, so no epoch is the best",
            "remove it, or evaluate on clips with labels (data.eval_split)",
        )


def _check_single_label(clips: ClipSet) -> None:
    counts = clips.label_indices.num_distinct()
    if (counts != 1).any():
        first = int(np.argmax(counts != 1))
        raise UserError(
            "train.loss",
            f"'ce' is for clips with one label, but clip {clips.ids[first]!r} of {clips.name!r} "
            f"has {counts[first]}",
            "set train.loss=bce",
        )


def check_rate(recipe: Recipe, data: TrainingData) -> None:
    """Reject a run that ends within the first stage of its warm-up, at a learning rate of 0.

    Raises:
        UserError: the run is that short.
    """
    schedule, steps = recipe.schedule, num_steps(recipe, data)
    if schedule.warmup_steps and steps <= schedule.warmup_every_steps:
        raise UserError(
            "schedule.warmup_every_steps",
            f"the run has {counted(steps, 'step')}, and the first {schedule.warmup_every_steps} "
            "have a learning rate of 0",
            "lower it, or set schedule.warmup_steps=0",
        )


def num_steps(recipe: Recipe, data: TrainingData) -> int:
    """Steps of the whole run."""
    return recipe.train.epochs * steps_per_epoch(len(data.train), recipe.train.batch_size)
