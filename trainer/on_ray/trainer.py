"""Ray Train's trainer, without helpers that cost time or can end a training that is well.

On one machine its workers find each other by a file in place of a port. Those of a training take
SIGTERM as a notice to leave, and their number may change by our own policy. This module does not
load PyTorch, which the controller would have to wait for.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.train.backend import BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pipeline.on_ray.nodes import cluster_nodes
from pipeline.terminal import log
from trainer.on_ray.joining import JoinByFile
from trainer.on_ray.retry import Retrying
from trainer.on_ray.scaling import Elastic, Fixed, OnOnlyNode

UNWANTED = frozenset({"PlacementGroupCleanerCallback", "DatasetsCallback"})


class Trainer(DataParallelTrainer):  # type: ignore[misc]
    """`DataParallelTrainer` without two of its helpers.

    `PlacementGroupCleaner` asks the Ray it happens to find on the machine whether the training
    still lives. If this is another than the one in use, it takes the resources from a training that
    does. What it is for, a lost controller, ends this process and with it what Ray holds for it.

    `DatasetsCallback` starts a process that hands out Ray Data's sets, which these workers, with
    loaders of their own, would never ask.

    On a node that there is for this step alone, the controller starts while this process still
    checks that the training can run. Ray Train would give the controller environment variables of
    its own. Ray starts such a process in two steps, each of which imports Ray, for 0.3 s. They are
    not needed: all that Ray starts on its node inherits the variables that it was started with.

    Ray 2.60 has no option for it, nor for the policies of scaling and failures: the private
    `_create_default_callbacks` and `_initialize_and_run_controller` are overridden here.
    """

    def __init__(self, *arguments: Any, check: Callable[[], None], **options: Any) -> None:
        """`check`: raises an error if the training cannot run; called before its workers start."""
        super().__init__(*arguments, **options)
        self._check = check

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ not in UNWANTED]

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        policy = Elastic if self.scaling_config.elasticity_enabled else Fixed
        if policy is Fixed and getattr(self.backend_config, "is_only_node", False):
            policy = OnOnlyNode
        arguments["scaling_policy"] = policy(self.scaling_config)
        arguments["failure_policy"] = Retrying(self.run_config.failure_config, log.level())
        if policy is not OnOnlyNode:
            self._check()
            return super()._initialize_and_run_controller(**arguments)
        controller = ray.remote(num_cpus=0)(TrainController).remote(**arguments)
        self._check()
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())


@contextmanager
def how_to_join(*, listens: bool) -> Iterator[BackendConfig]:
    """How the workers join: by a file if the connected Ray is on the loopback interface alone.

    Otherwise by a port of the first worker.

    Args:
        listens: whether SIGTERM asks them to leave, in place of ending them.
    """
    addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]]
    if set(addresses) != {"127.0.0.1"}:
        # It loads PyTorch.
        from trainer.on_ray.joining_by_port import JoinByPort

        yield JoinByPort(listens=listens)
        return
    with tempfile.TemporaryDirectory(prefix="ast-ray-") as folder:
        is_only_node = len(addresses) == 1 and cluster_nodes().growth is None
        yield JoinByFile(folder=folder, listens=listens, is_only_node=is_only_node)
