"""A GPU that fails or is too small, as one line in place of PyTorch's pages."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.errors import UserError, first_line


class GpuError(UserError):
    """A GPU failed; the process that used it can compute no more on it."""


@contextmanager
def naming_gpu_faults() -> Iterator[None]:
    """Name the machine of a GPU that fails in this block.

    Raises:
        GpuError: a call of CUDA failed.
        UserError: it has too little memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            socket.gethostname(),
            "the GPU has too little memory for the model and a batch",
            "lower --batch-size, or let fewer processes share a GPU",
        ) from error
    except torch.AcceleratorError as error:
        what = first_line(Exception(error.args[0] if error.args else ""))
        raise GpuError(
            socket.gethostname(), f"the GPU failed: {what}", "run the same command again to resume"
        ) from error
