"""The trained model of a run, to be exported.

In: a run folder. Out: the model with its weights, and what the run says of it.
"""

from dataclasses import dataclass, replace

from pipeline.fbank_settings import FbankSettings
from trainer.checkpoints.fit import load_exactly
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.trained import read_trained
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import RunInfo, read_recipe, read_run


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainedModel:
    """A run's model with some of its weights."""

    run_path: str
    run: RunInfo
    recipe: Recipe
    weights: Weights
    model: AST
    """In evaluation mode, not compiled, on the CPU."""
    fbank: FbankSettings
    """Of the fbanks that it takes."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Frames that evaluation pads clips to: to the first that holds them, and else cuts them
        to the last."""
        return (*self.recipe.sampler.bucket_frames, self.recipe.model.num_frames)


def read_trained_model(run_path: str, weights: Weights) -> TrainedModel:
    """The model of a run.

    Raises:
        UserError: the run or these weights do not exist.
    """
    run = read_run(run_path)
    trained = read_trained(run_path, weights)
    recipe = read_recipe(run_path, run)
    fbank = FbankSettings()
    if run.data.num_mels is not None:
        fbank = replace(fbank, num_mels=run.data.num_mels)
    # Compiled blocks cannot be exported, and their weights are the same.
    settings = replace(recipe.model.without_weights(), compile=False)
    model = build_model(settings, num_classes=len(run.data.labels), num_mels=fbank.num_mels)
    load_exactly(model, trained, source=run_path)
    return TrainedModel(
        run_path=run_path,
        run=run,
        recipe=recipe,
        weights=weights,
        model=model.eval(),
        fbank=fbank,
    )
