"""Warnings about a recipe on its clips: they do not stop a run, but a user would want to know.

In: a recipe and the clips it is for. Out: a line for each setting that has no effect, and for
scores that say less than they seem to; an error where nothing at all would be learned.
"""

from dataclasses import fields, replace

from pipeline import storage
from pipeline.errors import UserError
from trainer.data.clips import TrainingData
from trainer.data.sampler import steps_per_epoch
from trainer.data.settings import DataSettings, SamplerSettings
from trainer.recipe.recipe import Recipe

_SMALL_SHARE = 0.005
"""Of the audio: a few clips that are a frame too long are nothing odd."""


def recipe_warnings(recipe: Recipe, data: TrainingData) -> list[str]:
    """Lines of `section.key: warning`."""
    return [
        *_on_data(recipe, data),
        *_on_model(recipe, data),
        *_on_batches(recipe, data),
        *_on_schedule(recipe, data),
    ]


def check_rate(recipe: Recipe, data: TrainingData) -> None:
    """Refuse a run that ends within the first stage of its warm-up, which is at a rate of 0.

    Raises:
        UserError: it does.
    """
    schedule, num_steps = recipe.schedule, _num_steps(recipe, data)
    if schedule.warmup_steps and num_steps <= schedule.warmup_every_steps:
        raise UserError(
            "schedule.warmup_every_steps",
            f"the run has {num_steps} steps, and the first {schedule.warmup_every_steps} are "
            "at a learning rate of 0",
            "lower it, or set schedule.warmup_steps=0",
        )


def _on_data(recipe: Recipe, data: TrainingData) -> list[str]:
    found = []
    shared = len(set(data.train.ids) & set(data.evaluation.ids))
    if shared:
        found.append(
            f"data.eval_split: {shared} of its {len(data.evaluation)} clips are trained on, so the "
            f"scores on it say little of other clips"
        )
    if recipe.data.fold and recipe.data.eval_split != DataSettings().eval_split:
        found.append("data.eval_split: without effect, as data.fold is evaluated on")
    return found


def _on_model(recipe: Recipe, data: TrainingData) -> list[str]:
    model, mels, found = recipe.model, data.train.num_mels, []
    is_random = not (model.pretrained or model.weights_file)
    if model.position_embedding == "reinitialise" and is_random:
        found.append("model.position_embedding: without effect, as all weights are drawn at random")
    others = replace(model, patchout_share=0.0)
    num_left = others.num_kept_patches(mels)
    if model.patchout_share and model.num_kept_patches(mels) == num_left:
        found.append(f"model.patchout_share: is less than one of {num_left} patches")
    return found


def _on_batches(recipe: Recipe, data: TrainingData) -> list[str]:
    train, sampler, augment, found = recipe.train, recipe.sampler, recipe.augment, []
    if train.batch_size > len(data.train):
        found.append(
            f"train.batch_size: only {len(data.train)} clips are trained on, so each epoch is one "
            f"step"
        )
    if train.micro_batch_size >= train.batch_size:
        found.append("train.micro_batch_size: without effect, as train.batch_size is no larger")
    if sampler.bucket_frames and data.train.num_frames.min() > sampler.bucket_frames[-1]:
        found.append(
            f"sampler.bucket_frames: the shortest clip has {data.train.num_frames.min()} frames, "
            f"so all are padded to model.num_frames"
        )
    if sampler.bucket_batches != SamplerSettings().bucket_batches and not sampler.bucket_frames:
        found.append("sampler.bucket_batches: without effect, as there is no sampler.bucket_frames")
    if augment.mixup_alpha != type(augment)().mixup_alpha and not augment.mixup_share:
        found.append("augment.mixup_alpha: without effect, as augment.mixup_share is 0")
    for name in ("frequency_mask", "time_mask"):
        if getattr(augment, name) == 1:
            found.append(f"augment.{name}: without effect, as masks are narrower than 1")
    if augment.crop == "random" and data.train.num_frames.max() <= recipe.model.num_frames:
        found.append("augment.crop: without effect, as no clip is longer than model.num_frames")
    lengths, kept = data.train.num_frames, recipe.model.num_frames
    num_longer = int((lengths > kept).sum())
    share = 1 - lengths.clip(max=kept).sum() / lengths.sum()
    if share > _SMALL_SHARE and augment.crop == "first":
        found.append(
            f"model.num_frames: {num_longer} of {len(data.train)} clips are longer than {kept} "
            f"frames and end there, which leaves out {share:.0%} of all"
        )
    if recipe.loader.cache_gb and not storage.is_remote(data.train.shards[0]):
        found.append("loader.cache_gb: without effect, as the shards are not on S3")
    return found


def _on_schedule(recipe: Recipe, data: TrainingData) -> list[str]:
    schedule, epochs, found = recipe.schedule, recipe.train.epochs, []
    num_steps = _num_steps(recipe, data)
    if schedule.warmup_steps >= num_steps:
        found.append(
            f"schedule.warmup_steps: the run has {num_steps} steps, so the learning rate does not "
            f"get to schedule.lr"
        )
    if schedule.decay_after_epochs and schedule.decay_after_epochs[0] >= epochs:
        found.append(
            f"schedule.decay_after_epochs: the run has {epochs} epochs, so the learning rate does "
            f"not decay"
        )
    if schedule.decay_factor != type(schedule)().decay_factor and not schedule.decay_after_epochs:
        found.append("schedule.decay_factor: without effect, as no schedule.decay_after_epochs")
    for one in fields(recipe.published):
        num_values = len(getattr(recipe.published, one.name))
        if num_values not in (0, epochs):
            found.append(
                f"published.{one.name}: scores of {num_values} epochs, where the run has {epochs}"
            )
    return found


def _num_steps(recipe: Recipe, data: TrainingData) -> int:
    return recipe.train.epochs * steps_per_epoch(len(data.train), recipe.train.batch_size)
