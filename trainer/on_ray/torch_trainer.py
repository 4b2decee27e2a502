"""Ray Train's trainer, without helpers that cost time or can end a training that is well.

On one machine its workers find each other by a file in place of a port. Those of a training take
SIGTERM as a notice to leave, and their number may change by our own policy.
"""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch.distributed
from ray.train.torch import TorchConfig, TorchTrainer

from pipeline.on_ray.nodes import cluster_nodes
from pipeline.terminal import log
from trainer.on_ray.notices import listen
from trainer.on_ray.retry import Retrying
from trainer.on_ray.scaling import Elastic, Fixed, OnOnlyNode

UNWANTED = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})


class Trainer(TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` without two of its helpers.

    `PlacementGroupCleaner` asks the Ray it happens to find on the machine whether the training
    still lives. If this is another than the one in use, it takes the resources from a training that
    does. What it is for, a lost controller, ends this process and with it what Ray holds for it.

    `DatasetsCallback` starts a process that hands out Ray Data's sets, which these workers, with
    loaders of their own, would never ask.

    Ray 2.60 has no option for it, nor for the policies of scaling and failures: the private
    `_create_default_callbacks` and `_initialize_and_run_controller` are overridden here.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in UNWANTED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = Elastic if self.scaling_config.elasticity_enabled else Fixed
        if policy is Fixed and getattr(self.backend_config, "is_only_node", False):
            policy = OnOnlyNode
        arguments["scaling_policy"] = policy(self.scaling_config)
        arguments["failure_policy"] = Retrying(self.run_config.failure_config, log.level())
        return super()._initialize_and_run_controller(**arguments)


@contextmanager
def torch_config(*, listens: bool) -> Iterator[TorchConfig]:
    """How the workers join: by a file if the connected Ray is on the loopback interface alone.

    Otherwise by a port of the first worker, which PyTorch opens on every interface, to anybody.

    Args:
        listens: whether SIGTERM asks them to leave, in place of ending them.
    """
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if set(addresses) != {"127.0.0.1"}:
        yield JoinByPort(listens=listens)
        return
    with tempfile.TemporaryDirectory(prefix="ast-ray-") as folder:
        is_only_node = len(addresses) == 1 and cluster_nodes().growth is None
        yield JoinByFile(folder=folder, listens=listens, is_only_node=is_only_node)


@dataclass
class JoinByPort(TorchConfig):  # type: ignore[misc]
    """A process group whose workers meet at a port of the first one."""

    listens: bool = False

    @property
    def backend_cls(self) -> type:
        return _JoinByPort


class _JoinByPort(TorchConfig().backend_cls):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def on_start(self, worker_group: Any, backend_config: JoinByPort) -> None:
        super().on_start(worker_group, backend_config)
        if backend_config.listens:
            worker_group.execute(listen)


@dataclass
class JoinByFile(TorchConfig):  # type: ignore[misc]
    """A process group whose workers, all on one machine, meet in a file of this user."""

    folder: str = ""
    listens: bool = False
    is_only_node: bool = False
    """Whether the cluster is this machine, and no autoscaler adds to it."""

    @property
    def backend_cls(self) -> type:
        return _JoinByFile


class _JoinByFile(TorchConfig().backend_cls):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def on_start(self, worker_group: Any, backend_config: JoinByFile) -> None:
        has_gpus = worker_group.get_resources_per_worker().get("GPU", 0) > 0
        # After a lost worker, the others start anew.
        store = Path(backend_config.folder) / uuid.uuid4().hex
        worker_group.execute(
            _join,
            backend="nccl" if has_gpus else "gloo",
            store=str(store),
            timeout_s=backend_config.timeout_s,
        )
        if backend_config.listens:
            worker_group.execute(listen)


def _join(*, backend: str, store: str, timeout_s: int) -> None:
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
        timeout=timedelta(seconds=timeout_s),
    )
