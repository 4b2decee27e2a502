"""What a run needs at least of its nodes' memory, to be known before it starts.

Measured with PyTorch 2.11 and Ray 2.60 on Linux; estimates of what grows with the model are low
rather than high, so that nothing is refused that would work.
"""

from collections.abc import Iterable

import torch

from pipeline.dataset.prepared import open_dataset
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.on_ray.settings import Workers
from trainer.recipe.recipe import Recipe

_FLOAT_BYTES = 4
_VALUES_PER_PARAMETER = 4
"""In training: the weight, its gradient, and two means of Adam."""
_VALUES_PER_TOKEN = 12
"""That a block keeps for the backward pass, in units of the width: inputs, queries, keys, values,
and the four times wider hidden layer."""


def model_bytes_of(recipes: Iterable[Recipe], dataset_path: str, workers: Workers) -> int:
    """Memory that a worker of any of these runs needs for its model, if it trains on CPUs."""
    dataset = open_dataset(dataset_path)
    return max(
        model_bytes(recipe, dataset.num_mels, len(dataset.labels), workers.fewest)
        for recipe in recipes
    )


def model_bytes(recipe: Recipe, num_mels: int, num_classes: int, num_workers: int) -> int:
    """Weights, optimiser and activations in each worker that trains on CPUs."""
    with torch.device("meta"):
        model = build_model(
            recipe.model.without_weights(), num_classes=num_classes, num_mels=num_mels
        )
    parameters = sum(weight.numel() for weight in model.parameters())
    if recipe.train.sharding == "shard":
        parameters //= num_workers
    values = _VALUES_PER_PARAMETER * parameters + _activations(recipe, model, num_workers)
    return _FLOAT_BYTES * values


def _activations(recipe: Recipe, model: AST, num_workers: int) -> int:
    """Values kept for the backward pass of one micro-batch."""
    clips = -(-recipe.train.batch_size // num_workers)
    clips = min(clips, recipe.train.micro_batch_size or clips)
    frames = min(recipe.sampler.bucket_frames, default=recipe.model.num_frames)
    patches = recipe.model.num_kept_patches(model.input_shape[1], frames)
    tokens = patches + model.num_class_tokens
    per_block = 1 if recipe.model.checkpoint_activations else _VALUES_PER_TOKEN
    return clips * tokens * model.head.in_features * len(model.blocks) * per_block
