"""Checks, before Ray starts, that a run or an evaluation can succeed.

In: a recipe or a run folder, and a prepared data set. Out: an error that explains a mistake; else
the state of the run, or the name of its predictions.
"""

import logging

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from trainer.checkpoints.paths import check_weights, checkpoint_paths, epoch_name, weights_path
from trainer.checkpoints.settings import Weights
from trainer.data.clips import select_clips, select_training_data
from trainer.model.backbone_names import is_surely_known
from trainer.recipe.fit import check_rate, check_settings
from trainer.recipe.recipe import Recipe
from trainer.recipe.warnings import recipe_warnings
from trainer.run.evaluation_name import evaluation_name
from trainer.run.history import is_finished, read_history
from trainer.run.run_folder import RunInfo, check_same_run, first_difference, read_run
from trainer.run.trackers.checks import check_tracker
from trainer.run.writer import alone_in, check_can_write
from trainer.scores.predictions import metrics_path, predictions_path

_logger = logging.getLogger(__name__)


def check_training(recipe: Recipe, dataset_path: str, run_path: str) -> tuple[bool, list[str]]:
    """Check, before Ray starts, that a run can succeed.

    Returns:
        Whether the run is finished; if not, also warnings about its settings or its folder.

    Raises:
        UserError: the data set, split, fold, weights or backbone do not exist; settings do not fit
            the data, or would learn nothing; the folder holds other files, is not writable, or
            another process trains there; a finished run lacks what more epochs need.
    """
    dataset = open_dataset(dataset_path)
    data = select_training_data(dataset, recipe.data)
    check_settings(recipe, data)
    warnings = list[str]()
    is_begun = check_same_run(run_path, recipe, dataset, may_go_on=True)
    if is_begun and is_finished(run_path):
        run, num_epochs = read_run(run_path), len(read_history(run_path).epochs)
        if num_epochs < recipe.train.epochs and not run.imported_from:
            _check_can_go_on(run_path, recipe, num_epochs)
        else:
            missing = _missing_results(run_path, data.evaluation.name)
            if not missing:
                return True, []
            _refuse_imported(run_path, run)
            warnings += [f"{path}: is missing and will be regenerated" for path in missing]
    check_rate(recipe, data)
    weights = recipe.model.weights_file
    if weights and not (is_begun or storage.exists(weights) or storage.list_files(weights)):
        raise UserError("model.weights_file", f"{weights} does not exist")
    _check_backbone(recipe.model.backbone)
    check_tracker(recipe.train.tracker, run_path)
    with alone_in(run_path):  # refused before Ray starts; the training itself holds the lock
        pass
    return False, warnings + recipe_warnings(recipe, data)


def _check_backbone(name: str) -> None:
    if not is_surely_known(name):
        # It loads timm, for seconds.
        from trainer.model.build import check_backbone

        check_backbone(name)


def _missing_results(run_path: str, name: str) -> list[str]:
    results = (predictions_path(run_path, name), metrics_path(run_path, name))
    return [path for path in results if not storage.exists(path)]


def _refuse_imported(run_path: str, run: RunInfo) -> None:
    if run.imported_from is not None:
        raise UserError(
            run_path,
            "an imported model, whose training cannot be resumed",
            "score it with `evaluate`, or fine-tune it with `train`, another --out and --set "
            f"model.weights_file={run_path}",
        )


def _check_can_go_on(run_path: str, recipe: Recipe, num_epochs: int) -> None:
    """Check that a finished run of `num_epochs` has what more epochs need, and say that it goes on.

    Raises:
        UserError: its checkpoints, or weights that are to be averaged, are gone.
    """
    remedy = "restore it, or give another --out to train from the start"
    if not checkpoint_paths(run_path):
        raise UserError(f"{run_path}/checkpoints", "has no checkpoint to go on from", remedy)
    for epoch in recipe.averaging.epochs(recipe.train.epochs):
        path = weights_path(run_path, epoch_name(epoch))
        if epoch <= num_epochs and not storage.exists(path):
            raise UserError(path, "is missing, and is to be averaged", remedy)
    _logger.info(
        "%s: finished after epoch %d, goes on to epoch %d",
        *(run_path, num_epochs, recipe.train.epochs),
    )


def check_evaluation(
    run_path: str, dataset_path: str, split: str, fold: int, weights: Weights = "last"
) -> str:
    """Check, before Ray starts, that a run can be evaluated; returns the name of the predictions.

    Raises:
        UserError: the run, data set, split or fold does not exist; the vocabulary differs; the run
            has no checkpoint yet, or not these weights; its folder cannot be written.
    """
    run, dataset = read_run(run_path), open_dataset(dataset_path)
    check_same_classes(run_path, run, dataset)
    if weights != "last":
        check_weights(run_path, weights)
    elif not checkpoint_paths(run_path):
        raise UserError(run_path, "the run has no checkpoint yet")
    name = evaluation_name(run, dataset, select_clips(dataset, split, fold), weights)
    check_can_write(run_path)
    return name


def check_same_classes(run_path: str, run: RunInfo, dataset: PreparedDataset) -> None:
    """Check that a run can score a data set.

    Raises:
        UserError: the vocabulary differs.
    """
    if difference := first_difference(dataset.labels, run.data.labels):
        raise UserError(
            dataset.path,
            f"not the classes of the run {run_path}: {difference}",
            "prepare it with --labels and a file of the run's classes, in their order (data.labels "
            "in run.json)",
        )
