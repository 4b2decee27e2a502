"""Warnings about a recipe on its clips, which do not stop a run.

In: a recipe and its clips. Out: a line for each setting without effect and each doubtful score.
"""

import math
from dataclasses import fields, replace

import numpy as np

from pipeline import storage
from pipeline.terminal.units import counted
from trainer.data.clips import TrainingData
from trainer.data.settings import DataSettings, SamplerSettings
from trainer.recipe.fit import num_steps
from trainer.recipe.recipe import Recipe

_LARGE_PADDING = 0.5
"""Share of the inputs that may be padding without a warning."""
_SMALL_SHARE = 0.005
"""Share of the audio that may be cut without a warning: a few clips may be a frame too long."""


def recipe_warnings(recipe: Recipe, data: TrainingData) -> list[str]:
    """Lines of `section.key: warning`."""
    return [
        *_on_data(recipe, data),
        *_on_model(recipe, data),
        *_on_lengths(recipe, data),
        *_on_batches(recipe, data),
        *_on_schedule(recipe, data),
    ]


def _on_data(recipe: Recipe, data: TrainingData) -> list[str]:
    warnings = []
    shared = data.train.ids.num_shared(data.evaluation.ids)
    if shared:
        warnings.append(
            f"data.eval_split: {shared} of its {counted(len(data.evaluation), 'clip')} "
            f"{'is' if shared == 1 else 'are'} also trained on, so its scores say little about "
            "other clips"
        )
    if recipe.data.fold and recipe.data.eval_split != DataSettings().eval_split:
        warnings.append("data.eval_split: without effect, as data.fold is evaluated on")
    return warnings


def _on_model(recipe: Recipe, data: TrainingData) -> list[str]:
    model, mels, warnings = recipe.model, data.train.num_mels, []
    is_random = not (model.pretrained or model.weights_file)
    if model.position_embedding == "reinitialise" and is_random:
        warnings.append(
            "model.position_embedding: without effect, as all weights are drawn at random"
        )
    if model.pretrained and not model.weights_file:
        warnings += _on_hub_weights(model.backbone)
    num_candidates = replace(model, patchout_share=0.0).num_kept_patches(mels)
    if model.patchout_share and model.num_kept_patches(mels) == num_candidates:
        warnings.append(f"model.patchout_share: is less than one of {num_candidates} patches")
    return warnings


def _on_batches(recipe: Recipe, data: TrainingData) -> list[str]:
    train, sampler, augment, warnings = recipe.train, recipe.sampler, recipe.augment, []
    if train.batch_size > len(data.train):
        warnings.append(
            f"train.batch_size: there are only {len(data.train)} training clips, so each epoch is "
            f"one step"
        )
    if train.micro_batch_size >= train.batch_size:
        warnings.append("train.micro_batch_size: without effect, as train.batch_size is no larger")
    if sampler.bucket_frames and data.train.num_frames.min() > sampler.bucket_frames[-1]:
        warnings.append(
            f"sampler.bucket_frames: the shortest clip has {data.train.num_frames.min()} frames, "
            f"so all are padded to model.num_frames"
        )
    if sampler.bucket_batches != SamplerSettings().bucket_batches and not sampler.bucket_frames:
        warnings.append("sampler.bucket_batches: without effect, as sampler.bucket_frames is empty")
    if augment.mixup_alpha != type(augment)().mixup_alpha and not augment.mixup_share:
        warnings.append("augment.mixup_alpha: without effect, as augment.mixup_share is 0")
    for name in ("frequency_mask", "time_mask"):
        if getattr(augment, name) == 1:
            warnings.append(f"augment.{name}: without effect, as masks are narrower than 1")
    if augment.crop == "random" and data.train.num_frames.max() <= recipe.model.num_frames:
        warnings.append("augment.crop: without effect, as no clip is longer than model.num_frames")
    lengths, kept = data.train.num_frames, recipe.model.num_frames
    num_longer = int((lengths > kept).sum())
    share = 1 - lengths.clip(max=kept).sum() / lengths.sum()
    if share > _SMALL_SHARE and augment.crop == "first":
        warnings.append(
            f"model.num_frames: {num_longer} of {counted(len(data.train), 'clip')} "
            f"{'is' if num_longer == 1 else 'are'} longer than {kept} frames and cut, which drops "
            f"{share:.0%} of all frames"
        )
    if recipe.loader.cache_gb and not storage.is_remote(data.train.shards[0]):
        warnings.append("loader.cache_gb: without effect, as the shards are not on S3")
    return warnings


def _on_hub_weights(backbone: str) -> list[str]:
    # It loads timm, which takes seconds.
    from trainer.checkpoints.timm_hub import ambiguous_weights

    names = ambiguous_weights(backbone)
    if not names:
        return []
    others = ", ".join(names[1:])
    return [
        f"model.backbone: the weights are those of {names[0]}; there are also {others}: give the "
        "name with its tag"
    ]


def _on_lengths(recipe: Recipe, data: TrainingData) -> list[str]:
    """Inputs that are mostly padding, and the settings that spare its computation."""
    kept = recipe.model.num_frames
    lengths = data.train.num_frames.clip(max=kept)
    padding = 1 - lengths.mean() / kept
    if padding <= _LARGE_PADDING:
        return []
    longest = max(lengths.max(), data.evaluation.num_frames.max())
    fitting = _whole_patches(recipe, longest)
    if fitting <= kept * (1 - _LARGE_PADDING):
        mask = recipe.augment.time_mask * fitting // kept
        too_wide = recipe.augment.time_mask > fitting
        with_mask = f" and augment.time_mask={mask}" if too_wide else ""
        return [
            f"model.num_frames: {padding:.0%} of the inputs is padding, as the longest clip has "
            f"{longest} of {kept} frames; set model.num_frames={fitting}{with_mask} to train faster"
        ]
    edge = _whole_patches(recipe, int(np.median(lengths)))
    if recipe.sampler.bucket_frames or edge >= kept:
        return []
    return [
        f"sampler.bucket_frames: {padding:.0%} of the inputs is padding, as most clips are far "
        f"shorter than {kept} frames; set sampler.bucket_frames=[{edge}] to train faster"
    ]


def _whole_patches(recipe: Recipe, num_frames: int) -> int:
    """The fewest frames that hold `num_frames` in whole patches."""
    model = recipe.model
    num_strides = max(0, math.ceil((num_frames - model.patch_time) / model.stride_time))
    return model.patch_time + num_strides * model.stride_time


def _on_schedule(recipe: Recipe, data: TrainingData) -> list[str]:
    schedule, epochs, warnings = recipe.schedule, recipe.train.epochs, []
    steps = num_steps(recipe, data)
    if schedule.warmup_steps >= steps:
        warnings.append(
            f"schedule.warmup_steps: the run has {counted(steps, 'step')}, so the learning rate "
            f"never reaches schedule.lr"
        )
    if schedule.decay_after_epochs and schedule.decay_after_epochs[0] >= epochs:
        warnings.append(
            f"schedule.decay_after_epochs: the run has {counted(epochs, 'epoch')}, so the learning "
            f"rate never decays"
        )
    if schedule.decay_factor != type(schedule)().decay_factor and not schedule.decay_after_epochs:
        warnings.append("schedule.decay_factor: without effect, as no schedule.decay_after_epochs")
    for metric in fields(recipe.published):
        num_values = len(getattr(recipe.published, metric.name))
        if num_values not in (0, epochs):
            warnings.append(
                f"published.{metric.name}: scores of {counted(num_values, 'epoch')}, but the run "
                f"has {epochs}"
            )
    return warnings
