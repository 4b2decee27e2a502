"""Number formats that a model computes in; its weights and the optimiser stay float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from trainer.model.settings import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Within it, matrices are multiplied in that format."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, nothing is computed in another format than its inputs have."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
