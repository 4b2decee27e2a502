"""The training loop: epochs of steps, an evaluation after each, checkpoints. Runs without Ray.

In: a recipe, a prepared data set, a run folder, and the world of ranks. If the run folder has a
checkpoint, the loop carries on from it, within an epoch too. Out: the run folder with curves,
checkpoints, and predictions on the evaluation clips of the last weights, of averages and of the
epoch that is selected.

Every rank computes the same global batch's share; the sum over ranks of weighted losses, divided
by the clips in the global batch, is what is minimised, whatever the number of ranks and of clips
computed at once. A step whose loss or gradient is no finite number, or too large a one, is skipped
by all ranks; where too many follow one another, the run goes back to its last checkpoint, once.
"""

import math
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from pipeline import storage
from pipeline.dataset import PreparedDataset
from pipeline.errors import UserError
from trainer.augment import augment_batch
from trainer.averaging import (
    State,
    average_epochs,
    best_epoch,
    epoch_name,
    remove_other_epochs,
    update_ema,
    weights_path,
    write_weights,
)
from trainer.checkpoint import Background, Checkpoint, Progress, load_newest, save_checkpoint
from trainer.clips import TrainingData, select_training_data
from trainer.divergence import DivergedError, diverged, gradient_norm, is_bad, write_bad_steps
from trainer.evaluation import Evaluation, evaluate
from trainer.flops import peak_flops, training_flops
from trainer.loader import Batch, EpochPlan, Loader, plan_epoch
from trainer.loss import loss_per_clip
from trainer.metrics import evaluate_scores
from trainer.model import AST, build_model
from trainer.optimiser import make_optimiser
from trainer.predictions import from_scores, predictions_name, write_predictions
from trainer.recipe import Recipe, check_fit
from trainer.run_folder import TensorBoardLog, describe_run, write_history
from trainer.sampler import Stream, draw_weights, patchout_seed, random_bits
from trainer.schedule import learning_rate
from trainer.weights import read_state
from trainer.window import StepFacts, Window, timed
from trainer.world import World

Report = Callable[[dict[str, Any]], None]
"""Called by the first rank after every step, with what a progress bar shows."""

_SHOWN = ("loss", "grad_norm", "clips_per_s", "data_wait_share", "peak_memory_bytes", "mfu")
"""Of the curve's last point."""


@dataclass(kw_only=True, slots=True, eq=False)
class _Run:
    """The parts of a run, put together once."""

    recipe: Recipe
    path: str
    data: TrainingData
    world: World
    ast: AST
    shared: nn.Module
    """The model as training calls it: it averages gradients over the ranks."""
    optimiser: torch.optim.Optimizer
    scaler: GradScaler
    """Of the loss in float16; else it does nothing."""
    ema: State
    """Moving average of the weights; empty without one."""
    progress: Progress
    train_loader: Loader
    eval_loader: Loader
    log: TensorBoardLog | None
    """Of the first rank."""
    report: Report
    saved_at: float
    score_sum: Tensor | None = None
    """Sum of the evaluations' scores over the finished epochs, `[N, C]`."""
    background: Background = field(default_factory=Background)
    """Writes checkpoints, on the first rank."""


def train(
    recipe: Recipe,
    dataset: PreparedDataset,
    run_path: str,
    *,
    world: World,
    report: Report = lambda values: None,
) -> None:
    """Run a recipe to its end, from its last checkpoint if there is one.

    Raises:
        UserError: the data lacks what the recipe names, weights cannot be had, or the loss is no
            longer a finite number.
    """
    run = _set_up(recipe, dataset, run_path, world, report)
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
        # A restart between the last checkpoint and the predictions has nothing left but this.
        _write_results(run, evaluation or _evaluate(run))
    finally:
        run.background.close()
        if run.log is not None:
            run.log.close()


def _set_up(
    recipe: Recipe, dataset: PreparedDataset, run_path: str, world: World, report: Report
) -> _Run:
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    saved = load_newest(run_path)
    _check_ranks_agree(world, run_path, 0 if saved is None else saved.progress.step)
    ast = make_model(recipe, dataset, fresh=saved is None)
    if saved is None and world.is_first:
        facts = describe_run(recipe, dataset, data, ast.num_parameters())
        storage.write_json(storage.join(run_path, "run.json"), facts)
    shared = world.share(ast)
    start = ast.state_dict() if recipe.averaging.ema_decay else {}
    make_loader = partial(
        Loader,
        settings=recipe.loader,
        num_frames=recipe.model.num_frames,
        bucket_frames=recipe.sampler.bucket_frames,
        device=world.device,
    )
    run = _Run(
        recipe=recipe,
        path=run_path,
        data=data,
        world=world,
        ast=ast,
        shared=shared,
        optimiser=make_optimiser(ast.parameters(), recipe.optimiser),
        scaler=GradScaler(world.device.type, enabled=recipe.train.precision == "float16"),
        ema={name: value.clone() for name, value in start.items()},
        progress=Progress(),
        train_loader=make_loader(data.train),
        eval_loader=make_loader(data.evaluation),
        log=None,
        report=report,
        saved_at=time.monotonic(),
    )
    if saved is not None:
        _restore(run, saved)
    if world.is_first:
        run.log = TensorBoardLog(run_path, run.progress.step)
    return run


def _restore(run: _Run, saved: Checkpoint) -> None:
    run.ast.load_state_dict(saved.model)
    run.optimiser.load_state_dict(saved.optimiser)
    run.scaler.load_state_dict(saved.scaler)
    run.ema = {name: value.to(run.world.device) for name, value in saved.ema.items()}
    run.progress, run.score_sum = saved.progress, saved.score_sum


def _go_back(run: _Run, error: DivergedError) -> None:
    """Carry on from the last checkpoint, as a restart does; raises the error where that is no use.

    What is known of the bad steps is kept.
    """
    _wait_for_writes(run)
    saved = None if run.progress.has_gone_back else load_newest(run.path)
    _check_ranks_agree(run.world, run.path, 0 if saved is None else saved.progress.step)
    if saved is None:
        raise error
    bad_steps = run.progress.bad_steps
    _restore(run, saved)
    run.progress = replace(
        saved.progress, bad_steps=bad_steps, num_bad_in_a_row=0, has_gone_back=True
    )
    if run.log is not None:
        print(f"{error}; carrying on from step {run.progress.step}", file=sys.stderr, flush=True)
        run.log.close()
        run.log = TensorBoardLog(run.path, run.progress.step)
    _save(run)


def _wait_for_writes(run: _Run) -> None:
    """Until the first rank's files are there for all ranks."""
    run.background.wait()
    float(run.world.sum(torch.zeros((), device=run.world.device)))


def _check_ranks_agree(world: World, run_path: str, step: int) -> None:
    """Refuse ranks that would carry on from different places: a local folder of another machine."""
    steps = world.gather(torch.tensor([step], device=world.device)).tolist()
    if len(set(steps)) > 1:
        raise UserError(
            f"{run_path}: the workers find checkpoints of different steps there ({steps}); it must "
            f"be a folder that all of their machines share, such as one on S3"
        )


def make_model(recipe: Recipe, dataset: PreparedDataset, *, fresh: bool) -> AST:
    """The recipe's model; `fresh` with the first weights it asks for, else to be loaded into."""
    settings = recipe.model
    if not fresh:
        settings = replace(settings, pretrained=False, weights_file="")
    torch.manual_seed(recipe.train.seed)
    labels = dataset.labels
    return build_model(settings, num_classes=len(labels), num_mels=dataset.num_mels, labels=labels)


def _train_epoch(run: _Run) -> None:
    """The rest of the epoch in progress."""
    train, progress, clips = run.recipe.train, run.progress, run.data.train
    weights = draw_weights(run.recipe.sampler, clips.label_indices, len(clips.labels))
    plan = plan_epoch(
        len(clips),
        weights,
        seed=train.seed,
        epoch=progress.epoch,
        batch_size=train.batch_size,
        rank=run.world.rank,
        world_size=run.world.size,
        lengths=run.train_loader.lengths if run.recipe.sampler.bucket_frames else None,
        bucket_batches=run.recipe.sampler.bucket_batches,
    )
    batches = run.train_loader.training_batches(
        plan, run.recipe.augment, first_step=progress.epoch_step
    )
    window = Window()
    run.shared.train()
    for batch, waited_s in timed(batches):
        lr = learning_rate(run.recipe.schedule, step=progress.step, epoch=progress.epoch)
        if progress.has_gone_back:
            lr *= train.lr_after_divergence
        _seed_model(run)
        window.waited_s += waited_s
        run.ast.patchout_seed = patchout_seed(train.seed, progress.step)
        flops = training_flops(run.ast, batch.fbanks.shape[1])
        window.add(_step(run, batch, lr), batch.num_clips, flops)
        if run.ema:
            update_ema(run.ema, run.ast.state_dict(), run.recipe.averaging.ema_decay)
        progress.step += 1
        progress.epoch_step += 1
        if len(window) == train.log_every_steps or progress.epoch_step == plan.num_steps:
            _log_window(run, window, plan, lr)
            _save_if_due(run, plan)
            window = Window()
        if run.world.is_first:
            run.report(_progress_values(run, plan, lr))


def _seed_model(run: _Run) -> None:
    """What the model draws, such as dropout, is a function of the position, as all else is."""
    progress, world = run.progress, run.world
    position = progress.epoch_step * world.size + world.rank
    seed = run.recipe.train.seed
    bits = random_bits(Stream.MODEL, seed=seed, epoch=progress.epoch, position=position)
    torch.manual_seed(int(bits.random_raw()))


def _step(run: _Run, batch: Batch, lr: float) -> Tensor:
    """One optimiser step, unless it is a bad one.

    Returns `[3]` on the device, the same on every rank: the sum of the global batch's losses, the
    gradient's norm, and 1 if the step was skipped.
    """
    train, device = run.recipe.train, run.world.device
    assert batch.draws is not None
    x = augment_batch(
        batch.fbanks.to(device, non_blocking=True),
        batch.num_frames.to(device, non_blocking=True),
        batch.draws,
        mean=run.data.mean,
        std=run.data.std,
    )
    targets, weights = batch.targets.to(device), batch.weights.to(device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    run.optimiser.zero_grad(set_to_none=True)
    size = train.micro_batch_size or len(x)
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        with _sharing_gradients(run.shared, start + size >= len(x)):
            loss = _loss(run, x[part], targets[part], weights[part])
            # Gradients are averaged over the ranks, so each share is scaled up by their number.
            scaled = run.scaler.scale(loss * (run.world.size / batch.num_clips))
            scaled.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    run.scaler.unscale_(run.optimiser)
    total, norm = run.world.sum(total), gradient_norm(run.ast).double()
    bad = is_bad(total, norm, train.max_gradient_norm)
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    # What torch's own scaler sets, too; all ranks have the same gradients and so the same answer.
    run.optimiser.found_inf = bad.float()  # type: ignore[attr-defined]
    run.optimiser.step()
    run.scaler.update()
    return torch.stack([total, norm, bad.double()])


def _loss(run: _Run, x: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The sum of the losses of some clips; weights are 0 for clips that only fill up."""
    train = run.recipe.train
    dtype = torch.float16 if train.precision == "float16" else torch.bfloat16
    with torch.autocast(x.device.type, dtype=dtype, enabled=train.precision != "float32"):
        logits = run.shared(x)
    return (loss_per_clip(logits.float(), targets, train.loss) * weights).sum()


def _sharing_gradients(shared: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Gradients are averaged over the ranks once a step, with its last backward pass."""
    if is_last or not isinstance(shared, DistributedDataParallel):
        return nullcontext()
    return shared.no_sync()


def _log_window(run: _Run, window: Window, plan: EpochPlan, lr: float) -> None:
    """Add a point to the training curve; all ranks see the same numbers but for the clock's."""
    progress, world = run.progress, run.world
    steps = window.read()
    _note_bad_steps(run, plan, steps)
    loss_sum = math.fsum(one.loss_sum for one in steps if not one.is_bad)
    num_good_clips = sum(one.num_clips for one in steps if not one.is_bad)
    elapsed_s = time.monotonic() - window.start_s
    progress.loss_sum += loss_sum
    progress.num_clips += num_good_clips
    progress.train_s += elapsed_s
    clips_per_s = sum(one.num_clips for one in steps) / elapsed_s
    peak = peak_flops(world.device, run.recipe.train.precision)
    norm = steps[-1].gradient_norm
    point = {
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": loss_sum / num_good_clips if num_good_clips else None,
        "lr": lr,
        "grad_norm": norm if math.isfinite(norm) else None,
        "num_bad_steps": sum(one.is_bad for one in steps),
        "clips_per_s": clips_per_s,
        "data_wait_share": window.waited_s / elapsed_s,
        "peak_memory_bytes": _peak_memory_bytes(world.device),
        "mfu": window.flops / elapsed_s / (peak * world.size) if peak else None,
    }
    progress.steps.append(point)
    if run.log is not None:
        names = point.keys() - {"step", "epoch"}
        run.log.add(progress.step, {f"train/{name}": point[name] for name in sorted(names)})
    if progress.num_bad_in_a_row >= run.recipe.train.max_bad_steps:
        raise diverged(run.path, progress.bad_steps[-1], progress.num_bad_in_a_row)


def _note_bad_steps(run: _Run, plan: EpochPlan, steps: list[StepFacts]) -> None:
    """Count the skipped steps among the last ones, and write down the clips of each."""
    progress, ids = run.progress, run.data.train.ids
    for ago, step in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        progress.num_bad_in_a_row = progress.num_bad_in_a_row + 1 if step.is_bad else 0
        if step.is_bad:
            positions = plan.positions(progress.epoch_step - 1 - ago)
            entry = {
                "step": progress.step - ago,
                "epoch": progress.epoch,
                # As texts: NaN is no number in JSON.
                "loss": str(step.loss_sum / step.num_clips),
                "grad_norm": str(step.gradient_norm),
                "ids": [ids[row] for row in plan.order[positions]],
                "partner_ids": [ids[row] for row in plan.partners[positions]],
            }
            progress.bad_steps.append(entry)
    if run.world.is_first and any(step.is_bad for step in steps):
        write_bad_steps(run.path, progress.bad_steps)


def _peak_memory_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def _evaluate(run: _Run) -> Evaluation:
    return evaluate(
        run.ast,
        run.eval_loader,
        mean=run.data.mean,
        std=run.data.std,
        loss=run.recipe.train.loss,
        batch_size=max(1, run.recipe.train.batch_size // run.world.size),
        world=run.world,
    )


def _finish_epoch(run: _Run, evaluation: Evaluation) -> None:
    """Note the epoch's results, then save: from here on the next epoch is in progress."""
    progress, metrics = run.progress, evaluation.metrics
    scores = torch.from_numpy(evaluation.scores)
    run.score_sum = scores if run.score_sum is None else run.score_sum + scores
    cumulative = (run.score_sum / progress.epoch).numpy()
    entry = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": progress.loss_sum / progress.num_clips if progress.num_clips else None,
        "eval_loss": evaluation.loss,
        "mAP": metrics.mAP,
        "mAUC": metrics.mAUC,
        "d_prime": metrics.d_prime,
        "accuracy": metrics.accuracy,
        # Of the mean of the scores of all epochs so far: `cum_mAP` of the authors' logs.
        "cumulative_mAP": evaluate_scores(
            evaluation.targets, cumulative, run.data.evaluation.labels
        ).mAP,
        "train_s": progress.train_s,
        "eval_s": evaluation.wall_s,
    }
    progress.epochs.append(entry)
    progress.epoch += 1
    progress.epoch_step = 0
    progress.loss_sum, progress.num_clips, progress.train_s = 0.0, 0, 0.0
    if run.log is not None:
        names = ("eval_loss", "mAP", "mAUC", "d_prime", "accuracy", "cumulative_mAP")
        run.log.add(progress.step, {f"eval/{name}": entry[name] for name in names})
    _save(run, _needed_epochs(run))


def _needed_epochs(run: _Run) -> set[int]:
    """The epochs whose weights the end of the run takes.

    Of those selected also the one before the last epoch: the older checkpoint, which a restart
    falls back to, knows no other.
    """
    train, entries = run.recipe.train, run.progress.epochs
    needed = set(run.recipe.averaging.epochs(train.epochs))
    if train.select_by:
        known = [entries, entries[:-1]] if len(entries) > 1 else [entries]
        needed |= {best_epoch(one, train.select_by)["epoch"] for one in known}
    return needed


def _save_if_due(run: _Run, plan: EpochPlan) -> None:
    """A checkpoint within the epoch; at its end there is one anyway, after the evaluation.

    None while steps are skipped: where to go back to is before them.
    """
    waited_s = time.monotonic() - run.saved_at
    at_end = run.progress.epoch_step == plan.num_steps
    is_due = waited_s >= run.recipe.train.checkpoint_every_s and not at_end
    if is_due and not run.progress.num_bad_in_a_row:
        _save(run)


def _save(run: _Run, needed_epochs: Collection[int] = ()) -> None:
    """Write a checkpoint and the curves in the background, from a copy of what they hold.

    All ranks hold the same weights, so the first does. `needed_epochs`, at an epoch's end: those
    whose weights are to be there from now on.
    """
    run.saved_at = time.monotonic()
    if not run.world.is_first:
        return
    run.background.wait()
    checkpoint = Checkpoint(
        model=run.ast.state_dict(),
        optimiser=run.optimiser.state_dict(),
        progress=run.progress,
        ema=run.ema,
        scaler=run.scaler.state_dict(),
        score_sum=run.score_sum,
    )
    run.background.start(partial(_write, run.path, run.log, checkpoint.copy(), needed_epochs))


def _write(
    run_path: str, log: TensorBoardLog | None, saved: Checkpoint, needed_epochs: Collection[int]
) -> None:
    """What a restart builds on must be there before the checkpoint is: curves, kept weights."""
    if saved.progress.epoch - 1 in needed_epochs:
        write_weights(run_path, epoch_name(saved.progress.epoch - 1), saved.model)
    if log is not None:
        log.flush()
    save_checkpoint(run_path, saved)
    write_history(run_path, saved.progress, finished=False)
    if needed_epochs:
        remove_other_epochs(run_path, needed_epochs)


def _write_results(run: _Run, evaluation: Evaluation) -> None:
    """Predictions and metrics of the last weights and of the others; then the run is finished."""
    _wait_for_writes(run)
    _write_predictions(run, evaluation, "last")
    for name, state in _other_weights(run):
        # No step follows that would need the weights as they were.
        run.ast.load_state_dict(state)
        if run.world.is_first:
            write_weights(run.path, name, state)
        _write_predictions(run, _evaluate(run), name)
    if run.world.is_first:
        write_history(run.path, run.progress, finished=True)
        if run.recipe.train.select_by:
            remove_other_epochs(run.path, run.recipe.averaging.epochs(run.recipe.train.epochs))


def _other_weights(run: _Run) -> Iterator[tuple[str, State]]:
    """The weights that the recipe asks for beside the last, by their names."""
    if epochs := run.recipe.averaging.epochs(run.recipe.train.epochs):
        yield "averaged", average_epochs(run.path, epochs)
    if run.ema:
        yield "ema", run.ema
    if run.recipe.train.select_by:
        epoch = best_epoch(run.progress.epochs, run.recipe.train.select_by)["epoch"]
        yield "best", read_state(weights_path(run.path, epoch_name(epoch)))


def _write_predictions(run: _Run, evaluation: Evaluation, weights: str) -> None:
    if run.world.is_first:
        facts = weights_facts(run.recipe, run.progress, weights)
        found = from_scores(run.data.evaluation, evaluation.targets, evaluation.scores, facts)
        found = replace(found, name=predictions_name(found.name, weights))
        write_predictions(run.path, found, evaluation.metrics)


def weights_facts(recipe: Recipe, progress: Progress, weights: str) -> dict[str, Any]:
    """What predictions say of the weights they are by: `last`, `averaged`, `ema` or `best`."""
    facts = {"loss": recipe.train.loss, "checkpoint_step": progress.step}
    if weights == "last":
        return facts
    if weights == "best":
        entry = best_epoch(progress.epochs, recipe.train.select_by)
        facts |= {"checkpoint_step": entry["step"], "epoch": entry["epoch"]}
    return {**facts, "weights": weights}


def _progress_values(run: _Run, plan: EpochPlan, lr: float) -> dict[str, Any]:
    """What a progress bar shows; the loss is the curve's last point, so that nothing waits."""
    progress = run.progress
    last_point = progress.steps[-1] if progress.steps else {}
    last_epoch = progress.epochs[-1] if progress.epochs else {}
    return {
        "run": run.path,
        "step": progress.step,
        "num_steps": plan.num_steps * run.recipe.train.epochs,
        "epoch": progress.epoch,
        "lr": lr,
        "num_bad_steps": len(progress.bad_steps),
        **{name: last_point.get(name) for name in _SHOWN},
        "mAP": last_epoch.get("mAP"),
        "accuracy": last_epoch.get("accuracy"),
    }
