"""The optimiser, from its settings."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from trainer.optim.settings import OptimiserSettings


def make_optimiser(
    parameters: Iterable[Parameter], settings: OptimiserSettings
) -> torch.optim.Optimizer:
    """The optimiser; the schedule sets its learning rate before every step.

    It is fused: one kernel updates all parameters, and skips the step on the device if the tensor
    `found_inf` says so (see `trainer.optim.skip`).
    """
    optimiser = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return optimiser(
        parameters,
        lr=0.0,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=True,
    )
