"""Settings of weight averages."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import MAX_COUNT, SettingValueError, check_at_most

Weights = Literal["last", "averaged", "ema", "best"]
"""Names of a run's weights; `last` are those of the newest checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragingSettings:
    """Averages of the weights to evaluate beside the last ones; they do not change the training.

    Raises:
        ValueError: a value out of range.
    """

    first_epoch: int = 0
    """First epoch to average: the weights at the end of each epoch from it on are kept and
    averaged (as published: 1 for AudioSet, 6 for its balanced set); 0: no average."""
    last_epoch: int = 0
    """Last epoch to average; 0: the last of the run."""
    ema_decay: float = 0.0
    """Share of its old value that an exponential moving average of the weights keeps at each step,
    such as 0.9999; 0: no moving average."""

    def __post_init__(self) -> None:
        for name in ("first_epoch", "last_epoch"):
            if getattr(self, name) < 0:
                raise SettingValueError(name, f"must be at least 0, got {getattr(self, name)}")
        check_at_most(self, MAX_COUNT, "first_epoch", "last_epoch")
        if self.last_epoch and not 1 <= self.first_epoch <= self.last_epoch:
            raise SettingValueError(
                "first_epoch",
                f"must be from 1 to last_epoch ({self.last_epoch}), got {self.first_epoch}",
            )
        if not 0 <= self.ema_decay < 1:
            raise SettingValueError(
                "ema_decay", f"must be at least 0 and below 1, got {self.ema_decay}"
            )

    def epochs(self, num_epochs: int) -> range:
        """The epochs to average in a run of `num_epochs`."""
        if self.first_epoch == 0:
            return range(0)
        return range(self.first_epoch, (self.last_epoch or num_epochs) + 1)
