"""From the CPU's memory to the device, while the host goes on.

A GPU copies from page-locked ("pinned") memory without the host waiting; on a CPU all stays where
it is.
"""

import math
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


class Buffer:
    """Memory that holds one batch after the other, on the CPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.memory = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
        # Blocking: a thread that waits for the device does not keep a core busy.
        self._used = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]

    def first(self, num_rows: int, length: int) -> Tensor:
        """Its beginning as `[num_rows, length, ...]`, contiguous."""
        shape = (num_rows, length, *self.memory.shape[2:])
        return self.memory.flatten()[: math.prod(shape)].view(shape)

    def mark_used(self) -> None:
        """Note that all copies to the device have been asked for."""
        if self._used is not None:
            self._used.record()

    def wait(self) -> None:
        """Until those copies are done."""
        if self._used is not None:
            self._used.synchronize()
