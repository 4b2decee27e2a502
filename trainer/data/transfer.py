"""From the CPU's memory to the device, while the host goes on.

A GPU copies from page-locked ("pinned") memory without the host waiting; on a CPU all stays where
it is.
"""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU where a GPU copies them from while the host goes on; else as they are.

    The memory is not used again before the copies that were asked for are done.
    """
    return values.pin_memory() if device.type == "cuda" else values


def on_device(device: torch.device, array: NDArray[Any]) -> Tensor:
    """A copy there; does not wait for the work of the device, as a plain `torch.tensor` would."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=True)
