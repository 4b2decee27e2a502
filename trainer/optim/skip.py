"""A step of the optimiser that the device itself skips, so that no step waits for the host.

The fused Adam of PyTorch 2.11 looks at an attribute `found_inf`, which torch's own loss scaler sets
and which is not documented: it is set here and nowhere else.
"""

import torch
from torch import Tensor


def step_unless(optimiser: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Make a step unless `is_bad`, a bool on the device; a skipped one changes no state.

    Args:
        optimiser: a fused Adam or AdamW.
        is_bad: `[]`, whether to skip the step.
    """
    optimiser.found_inf = is_bad.float()  # type: ignore[attr-defined]
    optimiser.step()
