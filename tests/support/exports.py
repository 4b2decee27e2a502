"""Runs to export, made without training, their scores, and what a model card says to do."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.dataset.prepared import PreparedDataset
from trainer.checkpoints.averaging import write_weights
from trainer.checkpoints.paths import weights_path
from trainer.checkpoints.state_files import read_state
from trainer.data.augment import normalise
from trainer.data.clips import select_training_data
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import RunInfo, describe_run, read_recipe, read_run, write_run


def made_run(path: str, dataset: PreparedDataset, recipe: Recipe, num_mels: int = 128) -> str:
    """A run with random weights as its averaged ones, with logits from about -2 to 2."""
    torch.manual_seed(3)
    settings = replace(recipe.model, compile=False)
    model = build_model(settings, num_classes=len(dataset.labels), num_mels=num_mels)
    with torch.no_grad():
        model.head.weight.mul_(3)
    data = select_training_data(dataset, recipe.data)
    info = describe_run(recipe, dataset, data, model.num_parameters())
    write_run(path, replace(info, data=replace(info.data, num_mels=num_mels)))
    write_weights(path, "averaged", model.state_dict())
    return path


def our_scores(run: str, raw: Tensor) -> NDArray[np.float32]:
    """Scores `[B, C]` of raw log-mels `[B, T, F]` by what `made_run` made."""
    info = read_run(run)
    with torch.no_grad():
        logits = _model(run, info)(normalise(raw, info.data.mean, info.data.std))
    is_softmax = read_recipe(run, info).train.score_function == "softmax"
    scores: NDArray[np.float32] = (logits.softmax(1) if is_softmax else logits.sigmoid()).numpy()
    return scores


def python_of(card: Path) -> str:
    """The program in a model card."""
    (program,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    return str(program)


def _model(run: str, info: RunInfo) -> AST:
    settings = replace(read_recipe(run, info).model, compile=False)
    model = build_model(
        settings, num_classes=len(info.data.labels), num_mels=info.data.num_mels or 0
    )
    model.load_state_dict(read_state(weights_path(run, "averaged")))
    return model.eval()
