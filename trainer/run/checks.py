"""Checks, before Ray starts, that a run or an evaluation can succeed.

In: a recipe or a run folder, and a prepared data set. Out: an error that explains a mistake, or
what the step needs to know of the run so far.
"""

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from trainer.checkpoints.averaging import check_weights
from trainer.checkpoints.checkpoint import checkpoint_paths
from trainer.checkpoints.settings import Weights
from trainer.data.clips import ClipSet, select_clips, select_training_data
from trainer.recipe.fit import check_fit
from trainer.recipe.recipe import Recipe
from trainer.recipe.warnings import check_rate, recipe_warnings
from trainer.run.history import is_finished
from trainer.run.run_folder import RunInfo, check_same_run, read_run
from trainer.scores.predictions import metrics_path, predictions_name, predictions_path


def check_training(recipe: Recipe, dataset_path: str, run_path: str) -> tuple[bool, list[str]]:
    """Check, before Ray starts, that a run can succeed.

    Returns:
        Whether it is finished already; if not, warnings about its settings or its folder.

    Raises:
        UserError: there is no such data set, split, fold or weights; settings do not fit the data
            or would learn nothing; the folder holds something else or is not writable.
    """
    dataset = open_dataset(dataset_path)
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    odd = list[str]()
    is_begun = check_same_run(run_path, recipe, dataset)
    if is_begun and is_finished(run_path):
        name = data.evaluation.name
        results = (predictions_path(run_path, name), metrics_path(run_path, name))
        lost = [path for path in results if not storage.exists(path)]
        if not lost:
            return True, []
        if read_run(run_path).imported_from is not None:
            raise UserError(
                run_path,
                "an imported model, which has no training to carry on",
                "`evaluate` makes its predictions, and `train` with another --out and --set "
                f"model.weights_file={run_path} trains on from it",
            )
        odd += [f"{path}: is missing and will be regenerated" for path in lost]
    check_rate(recipe, data)
    weights = recipe.model.weights_file
    if weights and not (is_begun or storage.exists(weights) or storage.list_files(weights)):
        raise UserError("model.weights_file", f"{weights} is not there")
    storage.make_folder(run_path)
    return False, odd + recipe_warnings(recipe, data)


def check_evaluation(
    run_path: str, dataset_path: str, split: str, fold: int, weights: Weights = "last"
) -> str:
    """Check, before Ray starts, that a run can be evaluated; returns the name of the predictions.

    Raises:
        UserError: there is no such run, data set, split or fold; the vocabulary differs; the run
            has no checkpoint yet, or not these weights.
    """
    run, dataset = read_run(run_path), open_dataset(dataset_path)
    if dataset.labels != run.data.labels:
        raise UserError(
            dataset_path,
            f"has {len(dataset.labels)} classes that are not, or not in the order of, the "
            f"{len(run.data.labels)} classes of the run {run_path}",
        )
    if weights != "last":
        check_weights(run_path, weights)
    elif not checkpoint_paths(run_path):
        raise UserError(run_path, "the run has no checkpoint yet")
    return evaluation_name(run, dataset, select_clips(dataset, split, fold), weights)


def evaluation_name(
    run: RunInfo, dataset: PreparedDataset, clips: ClipSet, weights: Weights
) -> str:
    """The name of the predictions; those on other data never replace the run's own."""
    if clips.data_fingerprint == run.data.fingerprint:
        return predictions_name(clips.name, weights)
    other = f"{dataset.path.rpartition('/')[2]}-{clips.data_fingerprint[:8]}"
    return predictions_name(f"{clips.name}-of-{other}", weights)
