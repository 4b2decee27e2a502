"""How many steps a run still has to make, by its newest checkpoint.

In: a recipe, its data set, and a run folder. Out: a number of steps, to order runs by.
"""

from pathlib import PurePosixPath

from pipeline.dataset.prepared import PreparedDataset
from trainer.checkpoints.paths import checkpoint_paths
from trainer.data.sampler import steps_per_epoch
from trainer.recipe.recipe import Recipe


def remaining_steps(recipe: Recipe, dataset: PreparedDataset, run_path: str) -> int:
    """Steps from the run's newest checkpoint, damaged or not, to its end."""
    data = recipe.data
    num_clips = int(dataset.rows(data.train_split, except_folds=data.untrained_folds).sum())
    num_steps = recipe.train.epochs * steps_per_epoch(num_clips, recipe.train.batch_size)
    newest = checkpoint_paths(run_path)[-1:]
    done = [int(PurePosixPath(path).stem.removeprefix("step-")) for path in newest]
    return num_steps - sum(done)
