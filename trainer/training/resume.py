"""Whether a checkpoint is one that a run can resume from.

In: a run that is set up, and a checkpoint read from its folder. Out: nothing, or an error that says
what of the checkpoint does not fit: its position, curves, weights or optimiser.
"""

from collections.abc import Mapping
from typing import Any

from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.fit import misfit
from trainer.checkpoints.progress import Progress
from trainer.data.sampler import steps_per_epoch
from trainer.training.run_state import Run

_MOMENTS = {"exp_avg", "exp_avg_sq"}
"""What Adam keeps of each weight, in its shape."""
_SETTINGS = ("betas", "eps", "weight_decay")


def check_resumable(run: Run, saved: Checkpoint) -> None:
    """Refuse a checkpoint that training would not have written.

    Raises:
        ValueError: says what is wrong with it.
    """
    num_clips = len(run.data.train)
    num_steps = steps_per_epoch(num_clips, run.recipe.train.batch_size)
    _check_progress(saved.progress, num_steps, run.recipe.train.epochs)
    weights = run.ast.state_dict()
    _refuse("the weights do not fit the model", misfit(weights, saved.model))
    averaged = weights if run.recipe.averaging.ema_decay else {}
    _refuse("the moving average does not fit the model", misfit(averaged, saved.ema))
    _check_optimiser(run.learner.optimiser, saved)
    if saved.scaler.keys() != run.learner.scaler.state_dict().keys():
        raise ValueError("the state of the loss scaler is missing or unexpected")
    evaluation = run.data.evaluation
    expected = [len(evaluation), len(evaluation.labels)] if saved.progress.epochs else None
    found = None if saved.score_sum is None else [*saved.score_sum.shape]
    if found != expected:
        raise ValueError(f"the sum of the scores has the shape {found} instead of {expected}")


def _check_progress(progress: Progress, num_steps: int, num_epochs: int) -> None:
    """Refuse a position that does not exist, or curves of another one."""
    epoch, epoch_step = progress.epoch, progress.epoch_step
    # All steps of an epoch: left before its evaluation.
    last_step = num_steps if epoch <= num_epochs else 0
    if not 1 <= epoch <= num_epochs + 1 or epoch_step > last_step:
        raise ValueError(
            f"step {epoch_step} of epoch {epoch} is not in the run, which has {num_epochs} epochs "
            f"of {num_steps} steps"
        )
    step = (epoch - 1) * num_steps + epoch_step
    if progress.step != step:
        raise ValueError(f"its step is {progress.step}, at this place in the run it is {step}")
    results = [(result.epoch, result.step) for result in progress.epochs]
    if results != [(number, number * num_steps) for number in range(1, epoch)]:
        raise ValueError(f"the results are not those of {epoch - 1} epochs")
    logged = [point.step for point in progress.steps]
    if logged != sorted(set(logged)) or max(logged, default=0) > step:
        raise ValueError(f"the curve does not end at step {step}")


def _check_optimiser(optimiser: Any, saved: Checkpoint) -> None:
    """Refuse an optimiser of other weights or settings, or without the moments of a weight."""
    groups, saved_groups = optimiser.state_dict()["param_groups"], saved.optimiser["param_groups"]
    for group, other in zip(groups, saved_groups, strict=True):
        for name in ("params", *_SETTINGS):
            if _as_list(group[name]) != _as_list(other[name]):
                raise ValueError(f"the optimiser's {name} differ from the run's")
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state: Mapping[int, Mapping[str, Any]] = saved.optimiser["state"]
    if state.keys() != (set(range(len(weights))) if saved.progress.step else set()):
        raise ValueError(f"the optimiser has the state of {len(state)} of {len(weights)} weights")
    for number, entries in state.items():
        if entries.keys() != _MOMENTS | {"step"}:
            raise ValueError(f"the optimiser's state of weight {number} is {sorted(entries)}")
        expected = dict.fromkeys(_MOMENTS, weights[number])
        moments = {name: entries[name] for name in _MOMENTS}
        _refuse(f"the optimiser's state of weight {number}", misfit(expected, moments))


def _as_list(value: Any) -> Any:
    return [*value] if isinstance(value, list | tuple) else value


def _refuse(what: str, problem: str) -> None:
    if problem:
        raise ValueError(f"{what}: {problem}")
