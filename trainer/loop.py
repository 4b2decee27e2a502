"""The training loop: epochs of steps, an evaluation after each, checkpoints. Runs without Ray.

In: a recipe, a prepared data set, a run folder, and the world of ranks. If the run folder has a
checkpoint, the loop carries on from it, within an epoch too. Out: the run folder with curves,
checkpoints, and the last checkpoint's predictions on the evaluation clips.

Every rank computes the same global batch's share; the sum over ranks of weighted losses, divided
by the clips in the global batch, is what is minimised, whatever the number of ranks.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.dataset import PreparedDataset
from pipeline.errors import UserError
from trainer.augment import augment_batch
from trainer.checkpoint import Checkpoint, Progress, load_newest, save_checkpoint
from trainer.clips import TrainingData, select_training_data
from trainer.evaluation import Evaluation, evaluate
from trainer.loader import Batch, EpochPlan, Loader, plan_epoch
from trainer.loss import loss_per_clip
from trainer.model import AST, build_model
from trainer.optimiser import make_optimiser
from trainer.predictions import from_scores, write_predictions
from trainer.recipe import Recipe, check_fit
from trainer.run_folder import TensorBoardLog, describe_run, write_history
from trainer.sampler import draw_weights
from trainer.schedule import learning_rate
from trainer.world import World

Report = Callable[[dict[str, Any]], None]
"""Called by the first rank after every step, with what a progress bar shows."""


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
    progress: Progress
    train_loader: Loader
    eval_loader: Loader
    log: TensorBoardLog | None
    """Of the first rank."""
    report: Report
    saved_at: float


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
            _train_epoch(run)
            evaluation = _evaluate(run)
            _finish_epoch(run, evaluation)
        # A restart between the last checkpoint and the predictions has nothing left but this.
        _write_results(run, evaluation or _evaluate(run))
    finally:
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
    if saved is not None:
        ast.load_state_dict(saved.model)
    elif world.is_first:
        facts = describe_run(recipe, dataset, data, ast.num_parameters())
        storage.write_json(storage.join(run_path, "run.json"), facts)
    shared = world.share(ast)
    optimiser = make_optimiser(ast.parameters(), recipe.optimiser)
    progress = Progress()
    if saved is not None:
        optimiser.load_state_dict(saved.optimiser)
        progress = saved.progress
    num_frames = recipe.model.num_frames
    return _Run(
        recipe=recipe,
        path=run_path,
        data=data,
        world=world,
        ast=ast,
        shared=shared,
        optimiser=optimiser,
        progress=progress,
        train_loader=Loader(data.train, recipe.loader, num_frames=num_frames, device=world.device),
        eval_loader=Loader(
            data.evaluation, recipe.loader, num_frames=num_frames, device=world.device
        ),
        log=TensorBoardLog(run_path, progress.step) if world.is_first else None,
        report=report,
        saved_at=time.monotonic(),
    )


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
    return build_model(settings, num_classes=len(dataset.labels), num_mels=dataset.num_mels)


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
    )
    batches = run.train_loader.training_batches(
        plan, run.recipe.augment, first_step=progress.epoch_step
    )
    window = _Window(run.world.device)
    run.shared.train()
    for batch in batches:
        lr = learning_rate(run.recipe.schedule, step=progress.step, epoch=progress.epoch)
        window.add(_step(run, batch, lr), batch.num_clips)
        progress.step += 1
        progress.epoch_step += 1
        if window.num_steps == train.log_every_steps or progress.epoch_step == plan.num_steps:
            _log_window(run, window, lr)
            _save_if_due(run, plan)
            window = _Window(run.world.device)
        if run.world.is_first:
            run.report(_progress_values(run, plan, lr))


def _step(run: _Run, batch: Batch, lr: float) -> Tensor:
    """One optimiser step; returns the sum of this rank's losses, on the device."""
    recipe, device = run.recipe, run.world.device
    assert batch.draws is not None
    x = augment_batch(
        batch.fbanks.to(device, non_blocking=True),
        batch.num_frames.to(device, non_blocking=True),
        batch.draws,
        mean=run.data.mean,
        std=run.data.std,
    )
    with torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=recipe.train.precision == "bfloat16"
    ):
        logits = run.shared(x)
    losses = loss_per_clip(logits.float(), batch.targets.to(device), recipe.train.loss)
    total = (losses * batch.weights.to(device)).sum()
    run.optimiser.zero_grad(set_to_none=True)
    # Gradients are averaged over the ranks, so each rank's share is scaled up by their number.
    (total * (run.world.size / batch.num_clips)).backward()  # type: ignore[no-untyped-call]
    for group in run.optimiser.param_groups:
        group["lr"] = lr
    run.optimiser.step()
    return total.detach()


class _Window:
    """Losses since the last point of the curve, kept on the device: reading them waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_clips = 0
        self.num_steps = 0
        self.start = time.monotonic()

    def add(self, loss_sum: Tensor, num_clips: int) -> None:
        self.loss_sum += loss_sum
        self.num_clips += num_clips
        self.num_steps += 1


def _log_window(run: _Run, window: _Window, lr: float) -> None:
    """Add a point to the training curve; all ranks see the same numbers."""
    progress = run.progress
    loss_sum = float(run.world.sum(window.loss_sum))
    loss, gradient_norm = loss_sum / window.num_clips, _gradient_norm(run.ast)
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        raise UserError(
            f"{run.path}: the loss is {loss}, the gradient's norm {gradient_norm} near step "
            f"{progress.step} (epoch {progress.epoch}); lower schedule.lr or lengthen "
            f"schedule.warmup_steps, and give another --out"
        )
    elapsed_s = time.monotonic() - window.start
    progress.loss_sum += loss_sum
    progress.num_clips += window.num_clips
    progress.train_s += elapsed_s
    point = {
        "step": progress.step,
        "epoch": progress.epoch,
        "loss": loss,
        "lr": lr,
        "grad_norm": gradient_norm,
        "clips_per_s": window.num_clips / elapsed_s,
    }
    progress.steps.append(point)
    if run.log is not None:
        names = ("loss", "lr", "grad_norm", "clips_per_s")
        run.log.add(progress.step, {f"train/{name}": point[name] for name in names})


def _gradient_norm(model: nn.Module) -> float:
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


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
    entry = {
        "epoch": progress.epoch,
        "step": progress.step,
        "train_loss": progress.loss_sum / progress.num_clips,
        "eval_loss": evaluation.loss,
        "mAP": metrics.mAP,
        "mAUC": metrics.mAUC,
        "d_prime": metrics.d_prime,
        "accuracy": metrics.accuracy,
        "train_s": progress.train_s,
        "eval_s": evaluation.wall_s,
    }
    progress.epochs.append(entry)
    progress.epoch += 1
    progress.epoch_step = 0
    progress.loss_sum, progress.num_clips, progress.train_s = 0.0, 0, 0.0
    if run.log is not None:
        names = ("eval_loss", "mAP", "mAUC", "d_prime", "accuracy")
        run.log.add(progress.step, {f"eval/{name}": entry[name] for name in names})
    _save(run)


def _save_if_due(run: _Run, plan: EpochPlan) -> None:
    """A checkpoint within the epoch; at its end there is one anyway, after the evaluation."""
    waited_s = time.monotonic() - run.saved_at
    at_end = run.progress.epoch_step == plan.num_steps
    if waited_s >= run.recipe.train.checkpoint_every_s and not at_end:
        _save(run)


def _save(run: _Run) -> None:
    """Write a checkpoint and the curves; all ranks hold the same weights, so the first does."""
    run.saved_at = time.monotonic()
    if not run.world.is_first:
        return
    checkpoint = Checkpoint(
        model=run.ast.state_dict(), optimiser=run.optimiser.state_dict(), progress=run.progress
    )
    if run.log is not None:
        # A restart adds no point up to this checkpoint, so they must be there before it is.
        run.log.flush()
    save_checkpoint(run.path, checkpoint)
    write_history(run.path, run.progress, finished=False)


def _write_results(run: _Run, evaluation: Evaluation) -> None:
    """Predictions and metrics of the last checkpoint; then the run counts as finished."""
    if not run.world.is_first:
        return
    facts = {"loss": run.recipe.train.loss, "checkpoint_step": run.progress.step}
    predictions = from_scores(run.data.evaluation, evaluation.targets, evaluation.scores, facts)
    write_predictions(run.path, predictions, evaluation.metrics)
    write_history(run.path, run.progress, finished=True)


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
        "loss": last_point.get("loss"),
        "clips_per_s": last_point.get("clips_per_s"),
        "mAP": last_epoch.get("mAP"),
        "accuracy": last_epoch.get("accuracy"),
    }
