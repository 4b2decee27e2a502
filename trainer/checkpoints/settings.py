"""Settings of the averages of weights."""

from dataclasses import dataclass
from typing import Literal

from pipeline.errors import SettingValueError

Weights = Literal["last", "averaged", "ema", "best"]
"""Weights of a run by their names; the first are those of the newest checkpoint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AveragingSettings:
    """Averages of the weights that are evaluated beside the last ones; none changes the training.

    Raises:
        ValueError: a value out of range.
    """

    first_epoch: int = 0
    """The first epoch whose weights at its end are averaged (AudioSet as published: 1, balanced
    6); 0: none. The weights of each are kept."""
    last_epoch: int = 0
    """The last such epoch; 0: the last of the run."""
    ema_decay: float = 0.0
    """Share of its old value that a moving average of the weights keeps at each step, such as
    0.9999; 0: no such average."""

    def __post_init__(self) -> None:
        for name in ("first_epoch", "last_epoch"):
            if getattr(self, name) < 0:
                raise SettingValueError(name, f"must be at least 0, got {getattr(self, name)}")
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
        """The epochs whose weights are averaged in a run of so many."""
        if self.first_epoch == 0:
            return range(0)
        return range(self.first_epoch, (self.last_epoch or num_epochs) + 1)
