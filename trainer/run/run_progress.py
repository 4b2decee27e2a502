"""What a run in progress reports after a step. Loads without PyTorch, as it crosses processes."""

from dataclasses import dataclass

from trainer.checkpoints.progress import CurvePoint, EpochResult


@dataclass(frozen=True, kw_only=True, slots=True)
class RunProgress:
    """What a progress bar shows of a run."""

    run: str
    """Its folder."""
    step: int
    num_steps: int
    """Steps of the whole run."""
    epoch: int
    lr: float
    num_bad_steps: int
    """Steps of the run that were skipped."""
    last_point: CurvePoint | None
    """The newest of the training curve, so that nothing waits for the device."""
    last_epoch: EpochResult | None
