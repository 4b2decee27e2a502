"""Evaluates a run once more: another split, other weights or another precision.

In: a run folder and a prepared data set. Steps: load the weights; every rank scores its slice of
the clips. Out: predictions and metrics in the run folder.
"""

from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from trainer.checkpoints.checkpoint import load_last
from trainer.checkpoints.fit import load_exactly
from trainer.checkpoints.paths import weights_path
from trainer.checkpoints.progress import Progress
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.state_files import State, read_state
from trainer.data.clips import select_clips
from trainer.data.loader import Loader
from trainer.recipe.recipe import Recipe
from trainer.run.evaluation_name import evaluation_name
from trainer.run.history import read_history
from trainer.run.run_folder import read_run
from trainer.scores.predictions import from_scores, write_predictions
from trainer.training.evaluation import evaluate
from trainer.training.loop import make_model, scores_source
from trainer.training.world import World


def evaluate_run(
    run_path: str,
    recipe: Recipe,
    dataset: PreparedDataset,
    *,
    split: str,
    fold: int,
    weights: Weights,
    world: World,
) -> None:
    """Score a split with weights of a run and write the predictions into the run.

    Args:
        run_path: the run.
        recipe: its settings; precision and scores may differ.
        dataset: with the classes of the run.
        split: name of the split.
        fold: number of the fold; 0 for the whole split.
        weights: which of the run's weights.
        world: the ranks that share the work; all call this together.

    Raises:
        UserError: the run lacks these weights, or the data set the split or fold.
        DivergedError: the model's outputs are not finite numbers.
    """
    run = read_run(run_path)
    state, progress = _trained_weights(run_path, weights)
    model = make_model(recipe, dataset, fresh=False).to(world.device)
    load_exactly(model, state, source=run_path)
    clips = select_clips(dataset, split, fold)
    loader = Loader(
        clips,
        recipe.loader,
        num_frames=recipe.model.num_frames,
        bucket_frames=recipe.sampler.bucket_frames,
        device=world.device,
    )
    evaluation = evaluate(
        model,
        loader,
        mean=run.data.mean,
        std=run.data.std,
        settings=recipe.train,
        world=world,
        run_path=run_path,
    )
    if world.is_first:
        source = scores_source(recipe, progress, weights)
        name = evaluation_name(run, dataset, clips, weights)
        predictions = from_scores(clips, evaluation.targets, evaluation.scores, source, name)
        write_predictions(run_path, predictions, evaluation.metrics)


def _trained_weights(run_path: str, weights: Weights) -> tuple[State, Progress]:
    """Weights of a run and its progress; all but the last weights need no checkpoint."""
    if weights == "last":
        saved = load_last(run_path)
        return saved.model, saved.progress
    history = read_history(run_path)
    if not history.epochs:
        raise UserError(f"{run_path}/history.json", "has no epoch", "train the run to the end")
    state = read_state(weights_path(run_path, weights))
    return state, Progress(step=history.epochs[-1].step, epochs=[*history.epochs])
