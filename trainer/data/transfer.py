"""Copies from the CPU's memory to the device that the host does not wait for.

A GPU copies from page-locked ("pinned") memory while the host goes on; for a CPU nothing is copied.
"""

import math
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """CPU values in pinned memory for a GPU; unchanged for a CPU.

    PyTorch reuses the memory only after pending copies from it are done.
    """
    return values.pin_memory() if device.type == "cuda" else values


def on_device(device: torch.device, array: NDArray[Any]) -> Tensor:
    """A copy on the device; unlike `torch.tensor`, it does not wait for the device's work."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=True)


class Buffer:
    """CPU memory that is reused from batch to batch."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.memory = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
        # Blocking: a thread that waits for the device does not keep a core busy.
        self._used = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]

    def first(self, num_clips: int, length: int) -> Tensor:
        """Its beginning as `[num_clips, length, ...]`, contiguous."""
        shape = (num_clips, length, *self.memory.shape[2:])
        return self.memory.flatten()[: math.prod(shape)].view(shape)

    def mark_used(self) -> None:
        """Record that all copies to the device are enqueued."""
        if self._used is not None:
            self._used.record()

    def wait(self) -> None:
        """Wait for these copies."""
        if self._used is not None:
            self._used.synchronize()
