"""The device of a worker that Ray gave a GPU, or none."""

import logging

import ray
import torch

_logger = logging.getLogger(__name__)


def worker_device() -> torch.device:
    """The GPU that Ray gave this process, else the CPU; warns if PyTorch cannot use the GPU."""
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    _logger.warning(
        "a node has a GPU that its PyTorch %s cannot use: the model computes on a CPU there",
        torch.__version__,
    )
    return torch.device("cpu")
