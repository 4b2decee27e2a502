"""Points of the training curve, and the state of a progress bar.

In: the steps since the last point. Steps: read their results from the device together; count and
record the skipped ones. Out: a point in the run's progress and in TensorBoard, and an error after
too many skipped steps in a row.
"""

import math
import time
from dataclasses import asdict

import torch

from trainer.checkpoints.progress import CurvePoint, SkippedStep, StepResult
from trainer.data.epoch_plan import EpochPlan
from trainer.model.flops import peak_flops
from trainer.run.run_progress import RunProgress
from trainer.run.skipped_steps import write_bad_steps
from trainer.training.divergence import diverged
from trainer.training.run_state import Run
from trainer.training.window import Window


def add_point(run: Run, window: Window, plan: EpochPlan, lr: float) -> None:
    """Add a point to the training curve; all ranks get the same values, except for times.

    Raises:
        DivergedError: too many steps in a row were skipped.
    """
    progress, world = run.progress, run.world
    steps = window.read()
    _note_bad_steps(run, plan, steps)
    loss_sum = math.fsum(step.loss_sum for step in steps if not step.is_bad)
    num_good_clips = sum(step.num_clips for step in steps if not step.is_bad)
    elapsed_s = time.monotonic() - window.start_s
    progress.loss_sum += loss_sum
    progress.num_clips += num_good_clips
    progress.train_s += elapsed_s
    clips_per_s = sum(step.num_clips for step in steps) / elapsed_s
    peak = peak_flops(world.device, run.recipe.train.precision)
    norm = steps[-1].gradient_norm
    point = CurvePoint(
        step=progress.step,
        epoch=progress.epoch,
        loss=loss_sum / num_good_clips if num_good_clips else None,
        lr=lr,
        grad_norm=norm if math.isfinite(norm) else None,
        num_bad_steps=sum(step.is_bad for step in steps),
        clips_per_s=clips_per_s,
        data_wait_share=window.waited_s / elapsed_s,
        peak_memory_bytes=_peak_memory_bytes(world.device),
        mfu=window.flops / elapsed_s / (peak * world.size) if peak else None,
    )
    progress.steps.append(point)
    if run.log is not None:
        values = asdict(point)
        names = values.keys() - {"step", "epoch"}
        run.log.add(progress.step, {f"train/{name}": values[name] for name in sorted(names)})
    if progress.num_bad_in_a_row >= run.recipe.train.max_bad_steps:
        raise diverged(run.path, progress.bad_steps[-1], progress.num_bad_in_a_row)


def _note_bad_steps(run: Run, plan: EpochPlan, steps: list[StepResult]) -> None:
    """Count the skipped steps since the last point, and record the clips of each."""
    progress, ids = run.progress, run.data.train.ids
    for ago, step in zip(range(len(steps) - 1, -1, -1), steps, strict=True):
        progress.num_bad_in_a_row = progress.num_bad_in_a_row + 1 if step.is_bad else 0
        if step.is_bad:
            positions = plan.positions(progress.epoch_step - 1 - ago)
            skipped = SkippedStep(
                step=progress.step - ago,
                epoch=progress.epoch,
                loss=_number(step.loss_sum / step.num_clips),
                grad_norm=_number(step.gradient_norm),
                ids=tuple(ids[index] for index in plan.order[positions]),
                partner_ids=tuple(ids[index] for index in plan.partners[positions]),
            )
            progress.bad_steps.append(skipped)
    if run.world.is_first and any(step.is_bad for step in steps):
        write_bad_steps(run.path, progress.bad_steps)


def _number(value: float) -> float | str:
    """The value for JSON, which has no NaN or infinity: these become strings."""
    return value if math.isfinite(value) else str(value)


def _peak_memory_bytes(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def run_progress(run: Run, plan: EpochPlan, lr: float) -> RunProgress:
    """The progress after a step."""
    progress = run.progress
    return RunProgress(
        run=run.path,
        step=progress.step,
        num_steps=plan.num_steps * run.recipe.train.epochs,
        epoch=progress.epoch,
        lr=lr,
        num_bad_steps=len(progress.bad_steps),
        last_point=progress.steps[-1] if progress.steps else None,
        last_epoch=progress.epochs[-1] if progress.epochs else None,
    )
