"""The training loop: epochs of steps, an evaluation after each, checkpoints. Runs without Ray.

In: a recipe, a prepared data set, a run folder, and the ranks. The loop resumes from a checkpoint
in the run folder, within an epoch too. Out: the run folder with curves, checkpoints, and
predictions on the evaluation clips by the last weights, their averages and the selected epoch's.

Each rank computes its slice of one global batch. The loss is the sum of weighted losses over all
ranks, divided by the clips in the global batch, whatever the number of ranks and the micro-batch
size. All ranks skip a step whose loss or gradient is not finite, or whose gradient is too large;
after too many in a row, the run goes back to its last checkpoint, once.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from trainer.checkpoints.averaging import (
    average_epochs,
    remove_other_epochs,
    update_ema,
    write_weights,
)
from trainer.checkpoints.checkpoint import load_newest
from trainer.checkpoints.paths import checkpoint_paths, epoch_name, weights_path
from trainer.checkpoints.progress import EpochResult, OpenWindow, Progress, best_epoch
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.state_files import State, read_state
from trainer.data.augment import augment_batch
from trainer.data.batch import Batch
from trainer.data.clips import select_training_data
from trainer.data.epoch_plan import plan_epoch
from trainer.data.loader import Loader
from trainer.data.random_streams import Stream, patchout_seed, random_bits
from trainer.data.sampler import sampling_weights
from trainer.model.ast import AST
from trainer.model.build import build_model
from trainer.model.flops import training_flops
from trainer.optim.schedule import learning_rate
from trainer.recipe.model_fit import check_fit
from trainer.recipe.recipe import Recipe
from trainer.run.history import reopen, write_history
from trainer.run.run_folder import check_same_data, describe_run, write_run
from trainer.run.skipped_steps import DivergedError
from trainer.run.tensorboard_log import TensorBoardLog
from trainer.run.trackers.follow import start_tracker
from trainer.run.writer import remove_unfinished, take_over, writing
from trainer.scores.metrics import METRICS, evaluate_scores
from trainer.scores.predictions import Source, from_scores, predictions_name, write_predictions
from trainer.training.curve import add_point, run_progress
from trainer.training.evaluation import Evaluation, evaluate
from trainer.training.fsdp import load_model, whole_copy
from trainer.training.notice import Notice
from trainer.training.resume import check_resumable
from trainer.training.run_state import (
    Asked,
    GoOn,
    Report,
    Run,
    leave,
    restore,
    save,
    save_if_due,
    wait_for_writes,
)
from trainer.training.step import make_learner, make_step
from trainer.training.window import Window, timed
from trainer.training.world import World

_logger = logging.getLogger(__name__)


def train(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_path: str,
    *,
    world: World,
    report: Report = lambda progress: None,
    asked: Asked = lambda: "",
    go_on: GoOn | None = None,
) -> None:
    """Train a recipe to the end, resuming from the last checkpoint if there is one.

    `go_on` may stop it after an epoch, with a checkpoint but without predictions; all ranks must be
    given it, or none.

    Raises:
        LeavingError: a rank was asked to leave; a checkpoint of this step is written.
        UserError: the data set lacks a split or fold of the recipe, its settings do not fit the
            data, weights cannot be loaded, or the training has diverged.
    """
    run = _set_up(recipe, dataset, run_path, world, report, asked)
    finished = False
    try:
        evaluation = None
        while run.progress.epoch <= recipe.train.epochs:
            try:
                _train_epoch(run)
                evaluation = _evaluate(run)
            except DivergedError as error:
                _go_back(run, error)
            else:
                _finish_epoch(run, evaluation)
                if not _goes_on(run, go_on):
                    return
        # A resumed run that had no epoch left to train has no evaluation yet.
        _write_results(run, evaluation or _evaluate(run))
        finished = True
    finally:
        run.background.close()
        if run.log is not None:
            run.log.close()
        if run.tracker is not None:
            run.tracker.close(finished=finished)


def _set_up(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_path: str,
    world: World,
    report: Report,
    asked: Asked,
) -> Run:
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    check_same_data(run_path, dataset)  # it may have been corrected since a worker was lost
    token = ""
    if world.is_first:
        token = take_over(run_path)
        remove_unfinished(run_path)
        # Before `run.json` has the new settings: a run stopped in between is not finished.
        reopen(run_path, recipe.train.epochs)
    world.wait()
    ast = make_model(recipe, dataset, fresh=not checkpoint_paths(run_path))
    if world.is_first:
        # At each start, since a resumed run may change some settings.
        write_run(run_path, describe_run(recipe, dataset, data, ast.num_parameters()))
    learner = make_learner(ast, recipe.optimiser, recipe.train, world)
    start = ast.state_dict() if recipe.averaging.ema_decay else {}
    make_loader = partial(
        Loader,
        settings=recipe.loader,
        num_frames=recipe.model.num_frames,
        bucket_frames=recipe.sampler.bucket_frames,
        device=world.device,
    )
    run = Run(
        recipe=recipe,
        path=run_path,
        data=data,
        learner=learner,
        ema={name: value.clone() for name, value in start.items()},
        progress=Progress(),
        train_loader=make_loader(data.train),
        eval_loader=make_loader(data.evaluation),
        log=None,
        tracker=None,
        token=token,
        report=report,
        asked=asked,
        saved_at=time.monotonic(),
    )
    saved = load_newest(run_path, partial(check_resumable, run))
    _check_ranks_agree(world, run_path, 0 if saved is None else saved.progress.step)
    if saved is not None:
        restore(run, saved)
    if world.is_first:
        run.log = TensorBoardLog(run_path, run.progress.step)
        run.tracker = start_tracker(recipe, run_path)
        if run.tracker is not None and saved is not None:
            run.tracker.follow(saved.progress.copy())
    return run


def _go_back(run: Run, error: DivergedError) -> None:
    """Resume from the last checkpoint, keeping the record of bad steps.

    Raises the error if there is no checkpoint, or if the run has gone back before.
    """
    wait_for_writes(run)
    saved = None
    if not run.progress.has_gone_back:
        saved = load_newest(run.path, partial(check_resumable, run))
    _check_ranks_agree(run.world, run.path, 0 if saved is None else saved.progress.step)
    if saved is None:
        raise error
    bad_steps = run.progress.bad_steps
    restore(run, saved)
    run.progress = replace(
        saved.progress, bad_steps=bad_steps, num_bad_in_a_row=0, has_gone_back=True
    )
    if run.log is not None:
        step = run.progress.step
        _logger.warning("%s: %s; resuming from step %d", error.where, error.what, step)
        run.log.close()
        run.log = TensorBoardLog(run.path, run.progress.step)
    save(run)


def _check_ranks_agree(world: World, run_path: str, step: int) -> None:
    """Reject ranks that would resume from different steps, as from local folders of machines."""
    steps = world.gather(torch.tensor([step], device=world.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            run_path,
            f"the workers see checkpoints of different steps there ({steps})",
            "use a folder that all of their machines share, such as one on S3, and that no other "
            "training writes to",
        )


def make_model(recipe: Recipe, dataset: PreparedDataset, *, fresh: bool) -> AST:
    """The recipe's model, with its initial weights if `fresh`, else to load a checkpoint into."""
    settings = recipe.model
    if not fresh:
        settings = settings.without_weights()
    torch.manual_seed(recipe.train.seed)
    labels = dataset.labels
    return build_model(settings, num_classes=len(labels), num_mels=dataset.num_mels, labels=labels)


def _train_epoch(run: Run) -> None:
    """The rest of the epoch in progress."""
    train, progress, clips = run.recipe.train, run.progress, run.data.train
    plan = plan_epoch(
        len(clips),
        # Not kept for the epoch: of 20 million clips they take 160 MB.
        sampling_weights(run.recipe.sampler, clips.label_indices, len(clips.labels)),
        seed=train.seed,
        epoch=progress.epoch,
        batch_size=train.batch_size,
        rank=run.world.rank,
        world_size=run.world.size,
        padded_frames=run.train_loader.padded_frames if run.recipe.sampler.bucket_frames else None,
        bucket_batches=run.recipe.sampler.bucket_batches,
    )
    batches = run.train_loader.training_batches(
        plan, run.recipe.augment, first_step=progress.epoch_step
    )
    window, notice = Window.resumed(progress.window), Notice()
    progress.window = OpenWindow()
    run.ast.train()
    for batch, waited_s in timed(batches, run.world.device):
        lr = learning_rate(run.recipe.schedule, step=progress.step, epoch=progress.epoch)
        if progress.has_gone_back:
            lr *= train.lr_after_divergence
        _seed_model(run)
        window.waited_s += waited_s
        run.ast.patchout_seed = patchout_seed(train.seed, progress.step)
        flops = training_flops(run.ast, batch.num_frames)
        result = _step(run, batch, lr)
        window.add(result, batch.num_clips, flops)
        notice.add(result[-1])
        if run.ema:
            update_ema(run.ema, run.ast.state_dict(), run.recipe.averaging.ema_decay)
        progress.step += 1
        progress.epoch_step += 1
        at_end = progress.epoch_step == plan.num_steps
        if len(window) >= train.log_every_steps or at_end:
            add_point(run, window, plan, lr)
            save_if_due(run, plan)
            window = Window()
        if run.world.is_first:
            run.report(run_progress(run, plan, lr))
        if notice.is_due(at_end=at_end):
            leave(run, window.copy())


def _seed_model(run: Run) -> None:
    """Make the model's random draws, such as dropout, a function of the position in the epoch."""
    progress, world = run.progress, run.world
    position = progress.epoch_step * world.size + world.rank
    seed = run.recipe.train.seed
    bits = random_bits(Stream.MODEL, seed=seed, epoch=progress.epoch, position=position)
    torch.manual_seed(int(bits.random_raw()))


def _step(run: Run, batch: Batch, lr: float) -> Tensor:
    """Augment a batch on the device and make a step; see `make_step`."""
    return make_step(run.learner, _augmented(run, batch), lr, leaves=bool(run.asked()))


def _augmented(run: Run, batch: Batch) -> Batch:
    """The batch with the model's input, on the device."""
    batch = batch.to_device(run.world.device)
    assert batch.draws is not None
    x = augment_batch(
        batch.x,
        batch.lengths,
        batch.draws,
        batch.audio_fbank,
        noise=batch.noise,
        mean=run.data.mean,
        std=run.data.std,
    )
    return batch.with_input(x)


def _evaluate(run: Run) -> Evaluation:
    return evaluate(
        run.ast,
        run.eval_loader,
        mean=run.data.mean,
        std=run.data.std,
        settings=run.recipe.train,
        world=run.world,
        run_path=run.path,
    )


def _finish_epoch(run: Run, evaluation: Evaluation) -> None:
    """Record the epoch's results and start the next epoch, then save."""
    progress, metrics = run.progress, evaluation.metrics
    scores = torch.from_numpy(evaluation.scores)
    run.score_sum = scores if run.score_sum is None else run.score_sum + scores
    cumulative = evaluate_scores(
        evaluation.targets,
        (run.score_sum / progress.epoch).numpy(),
        run.data.evaluation.labels,
    )
    result = EpochResult(
        epoch=progress.epoch,
        step=progress.step,
        train_loss=progress.loss_sum / progress.num_clips if progress.num_clips else None,
        eval_loss=evaluation.loss,
        mAP=metrics.mAP,
        mAUC=metrics.mAUC,
        d_prime=metrics.d_prime,
        accuracy=metrics.accuracy,
        cumulative_mAP=cumulative.mAP,
        cumulative_mAUC=cumulative.mAUC,
        cumulative_d_prime=cumulative.d_prime,
        cumulative_accuracy=cumulative.accuracy,
        train_s=progress.train_s,
        eval_s=evaluation.wall_s,
    )
    progress.epochs.append(result)
    progress.epoch += 1
    progress.epoch_step = 0
    progress.loss_sum, progress.num_clips, progress.train_s = 0.0, 0, 0.0
    if run.log is not None:
        names = ("eval_loss", *METRICS, *(f"cumulative_{name}" for name in METRICS))
        run.log.add(progress.step, {f"eval/{name}": getattr(result, name) for name in names})
    needed_epochs = _needed_epochs(run)
    is_last = progress.epoch > run.recipe.train.epochs
    # If any other checkpoint cannot be written, a later one makes up for it.
    save(run, needed_epochs, is_needed=is_last or bool(needed_epochs))


def _goes_on(run: Run, go_on: GoOn | None) -> bool:
    """Whether to train the next epoch, if there is one; the first rank decides for all."""
    if go_on is None or run.progress.epoch > run.recipe.train.epochs:
        return True
    wait_for_writes(run)
    stops = run.world.is_first and not go_on(run.progress.epochs[-1])
    return not run.world.sum(torch.tensor(float(stops), device=run.world.device))


def _needed_epochs(run: Run) -> set[int]:
    """The epochs whose weights the end of the run needs.

    Includes the epoch that was best before the last one: a run that resumes from the previous
    checkpoint still needs its weights.
    """
    train, results = run.recipe.train, run.progress.epochs
    needed = set(run.recipe.averaging.epochs(train.epochs))
    if train.select_by:
        known = [results, results[:-1]] if len(results) > 1 else [results]
        needed |= {best_epoch(results, train.select_by).epoch for results in known}
    return needed


def _write_results(run: Run, evaluation: Evaluation) -> None:
    """Write predictions and metrics of all weights, then mark the run as finished."""
    wait_for_writes(run)
    _write_predictions(run, evaluation, "last")
    for name, state in _other_weights(run):
        # No later step needs the last weights in the model.
        load_model(run.ast, state)
        whole = whole_copy(state, keep=run.world.is_first)
        if run.world.is_first:
            with writing(run.path, run.token):
                write_weights(run.path, name, whole)
        _write_predictions(run, _evaluate(run), name)
    if run.world.is_first:
        with writing(run.path, run.token):
            write_history(run.path, run.progress, finished=True)
            if run.recipe.train.select_by:
                remove_other_epochs(run.path, run.recipe.averaging.epochs(run.recipe.train.epochs))


def _other_weights(run: Run) -> Iterator[tuple[Weights, State]]:
    """The weights that the recipe asks for beside the last, with their names."""
    if epochs := run.recipe.averaging.epochs(run.recipe.train.epochs):
        yield "averaged", average_epochs(run.path, epochs)
    if run.ema:
        yield "ema", run.ema
    if run.recipe.train.select_by:
        epoch = best_epoch(run.progress.epochs, run.recipe.train.select_by).epoch
        path = weights_path(run.path, epoch_name(epoch))
        # Once the run was finished, only the copy is left.
        yield "best", read_state(path if storage.exists(path) else weights_path(run.path, "best"))


def _write_predictions(run: Run, evaluation: Evaluation, weights: Weights) -> None:
    if run.world.is_first:
        source = scores_source(run.recipe, run.progress, weights)
        clips = run.data.evaluation
        name = predictions_name(clips.name, weights)
        predictions = from_scores(clips, evaluation.targets, evaluation.scores, source, name)
        with writing(run.path, run.token):
            write_predictions(run.path, predictions, evaluation.metrics)


def scores_source(recipe: Recipe, progress: Progress, weights: Weights) -> Source:
    """The source of scores by these weights of a run."""
    source = Source(
        loss=recipe.train.loss,
        scores=recipe.train.score_function,
        precision=recipe.train.precision,
        checkpoint_step=progress.step,
        weights=None if weights == "last" else weights,
    )
    if weights != "best":
        return source
    best = best_epoch(progress.epochs, recipe.train.select_by)
    return replace(source, checkpoint_step=best.step, epoch=best.epoch)
