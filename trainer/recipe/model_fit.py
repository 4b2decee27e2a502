"""Checks that a recipe fits its clips, with its model."""

import torch

from trainer.data.clips import TrainingData
from trainer.model.build import build_model
from trainer.recipe.fit import check_settings
from trainer.recipe.recipe import Recipe


def check_fit(recipe: Recipe, data: TrainingData) -> None:
    """Reject settings that do not fit these clips.

    Raises:
        UserError: as `check_settings`; or more blocks than the backbone has, or a backbone that is
            no plain transformer.
    """
    check_settings(recipe, data)
    # On the meta device, the model costs neither memory nor a download.
    with torch.device("meta"):
        build_model(
            recipe.model.without_weights(),
            num_classes=len(data.train.labels),
            num_mels=data.train.num_mels,
        )
