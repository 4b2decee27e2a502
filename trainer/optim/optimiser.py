"""The optimiser, from its settings."""

from collections.abc import Iterable

import torch
from torch.nn import Parameter

from trainer.optim.settings import OptimiserSettings


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
