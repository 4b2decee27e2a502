"""Settings of the loss, the optimiser and the learning rate."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import MAX_COUNT, SettingValueError, check_at_most, check_one_of

Loss = Literal["bce", "ce"]
"""`bce`: independent labels, binary cross-entropy. `ce`: one label a clip, cross-entropy."""

ScoreFunction = Literal["sigmoid", "softmax"]


OptimiserName = Literal["adam", "adamw"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserSettings:
    """AST's optimiser: Adam with its weight decay as L2 in the gradient, not AdamW."""

    name: OptimiserName = "adam"
    """`adam` (as published) or `adamw` (decoupled weight decay)."""
    beta1: float = 0.95
    """Decay of the mean of the gradients."""
    beta2: float = 0.999
    """Decay of the mean of their squares."""
    weight_decay: float = 5e-7
    """Weight decay."""

    def __post_init__(self) -> None:
        check_one_of(self, get_args(OptimiserName), "name")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingValueError(
                    name, f"must be at least 0 and below 1, got {getattr(self, name)}"
                )
        check_at_most(self, MAX_COUNT, "weight_decay")
        if not 0 <= self.weight_decay < math.inf:
            raise SettingValueError(
                "weight_decay", f"must be a number of at least 0, got {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSettings:
    """Stepwise warm-up, then a decay after given epochs; the defaults are for full AudioSet."""

    lr: float = 1e-5
    """Learning rate after the warm-up and before the first decay."""
    warmup_steps: int = 1000
    """Optimiser steps until the warm-up reaches `lr`; 0 for none."""
    warmup_every_steps: int = 50
    """Steps between two increases of the rate in the warm-up; 1 gives a linear ramp."""
    decay_after_epochs: tuple[int, ...] = (2, 3, 4)
    """The rate decays at the end of each of these epochs, counted from 1; empty for never."""
    decay_factor: float = 0.5
    """Each decay multiplies the rate by this."""

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise SettingValueError("lr", f"must be a number above 0, got {self.lr}")
        check_at_most(self, MAX_COUNT, "lr", "decay_after_epochs")
        check_at_most(self, 1000 * MAX_COUNT, "warmup_steps", "warmup_every_steps")
        if self.warmup_steps < 0:
            raise SettingValueError("warmup_steps", f"must be at least 0, got {self.warmup_steps}")
        if self.warmup_every_steps < 1:
            raise SettingValueError(
                "warmup_every_steps", f"must be at least 1, got {self.warmup_every_steps}"
            )
        if 0 < self.warmup_steps < self.warmup_every_steps:
            raise SettingValueError(
                "warmup_every_steps",
                f"must be at most warmup_steps ({self.warmup_steps}), or the whole warm-up "
                f"runs at 0, got {self.warmup_every_steps}",
            )
        epochs = self.decay_after_epochs
        if any(epoch < 1 for epoch in epochs) or list(epochs) != sorted(set(epochs)):
            raise SettingValueError(
                "decay_after_epochs", f"must be increasing epochs from 1, got {list(epochs)}"
            )
        if not 0 < self.decay_factor <= 1:
            raise SettingValueError(
                "decay_factor", f"must be above 0 and at most 1, got {self.decay_factor}"
            )
