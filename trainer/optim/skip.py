"""An optimiser step that the device can skip without waiting for the host.

The fused Adam of PyTorch 2.11 reads an undocumented attribute `found_inf`, meant for torch's loss
scaler. Only this file sets it.
"""

import torch
from torch import Tensor


def step_unless(optimiser: torch.optim.Optimizer, is_bad: Tensor) -> None:
    """Make a step unless `is_bad`; a skipped step changes no state.

    Args:
        optimiser: a fused Adam or AdamW.
        is_bad: `[]`, a bool on the device.
    """
    optimiser.found_inf = is_bad.float()  # type: ignore[attr-defined]
    optimiser.step()
