"""How the workers of a training on one machine join in a process group: by a file, without a port.

Ray Train's own configuration loads PyTorch in its controller, for which the workers would wait.
"""

import os
import uuid
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig

from trainer.on_ray.notices import listen

_TIMEOUT_S = 1800
"""Longest wait of a worker for the others, as in Ray Train."""
_LEAVE_S = 30.0
"""Longest wait for the workers to leave their group, as in Ray Train."""


@dataclass(frozen=True, kw_only=True)
class JoinByFile(BackendConfig):  # type: ignore[misc]
    """A process group whose workers, all on one machine, meet in a file of this user."""

    folder: str
    listens: bool
    """Whether SIGTERM asks the workers to leave, in place of ending them."""
    is_only_node: bool
    """Whether the cluster is this machine, and no autoscaler adds to it."""

    @property
    def backend_cls(self) -> type:
        return _JoinByFile


class _JoinByFile(Backend):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    share_cuda_visible_devices = True
    """NCCL reaches the GPUs of the other workers only if each worker sees them."""

    def on_start(self, worker_group: Any, backend_config: JoinByFile) -> None:
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        # After a lost worker, the others start anew.
        store = Path(backend_config.folder) / uuid.uuid4().hex
        worker_group.execute(_join, backend="nccl" if has_gpus else "gloo", store=str(store))
        if backend_config.listens:
            worker_group.execute(listen)

    def on_shutdown(self, worker_group: Any, backend_config: JoinByFile) -> None:
        if len(worker_group) > 1:
            left = worker_group.execute_async(_leave)
            ray.wait(left, num_returns=len(left), timeout=_LEAVE_S)


def _join(*, backend: str, store: str) -> None:
    # Imported here: the controller does without it.
    import torch.distributed

    context = ray.train.get_context()
    # As Ray Train does; PyTorch and NCCL choose a GPU by them.
    os.environ.update(
        RANK=str(context.get_world_rank()),
        WORLD_SIZE=str(context.get_world_size()),
        LOCAL_RANK=str(context.get_local_rank()),
        LOCAL_WORLD_SIZE=str(context.get_local_world_size()),
        NODE_RANK=str(context.get_node_rank()),
    )
    torch.distributed.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        timeout=timedelta(seconds=_TIMEOUT_S),
    )


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
