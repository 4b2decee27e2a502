"""Mixed precision of a model; its weights and the optimiser stay float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from trainer.model.settings import Precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """A context that multiplies matrices in that precision."""
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")


def in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """A context without autocast: results have the precision of their inputs."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
