"""The optimiser, from its settings."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import Parameter

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
        if self.name not in get_args(OptimiserName):
            raise ValueError(f"name: must be one of {get_args(OptimiserName)}, got {self.name!r}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name}: must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay: must be a number of at least 0, got {self.weight_decay}"
            )


def make_optimiser(
    parameters: Iterable[Parameter], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """The optimiser; its learning rate is set before every step, by the schedule.

    It is fused: one kernel for all parameters, which does nothing where the tensor `found_inf`
    says so, without the host having to know.
    """
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
