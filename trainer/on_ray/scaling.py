"""How many workers a run has, and where not: on nodes that are lost or about to be shut down.

An elastic run has as many as the nodes have room for, between a least and a most. Ray Train's own
policy restarts a healthy group at once when its number changes, which loses the steps since the
last checkpoint. Here the workers are asked to leave with a checkpoint; the group that follows gets
the new number. Its view of the cluster is up to 20 s old, and has nodes that are dead or about to
be shut down, where a group waits for room until a timeout.

Ray 2.60 has no option for it: private members of its policy are overridden here.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import ray
from ray.train.v2._internal.execution.preemption import _get_draining_nodes
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    ResizeDecision,
)

from pipeline.on_ray.nodes import NODE_ID_LABEL
from pipeline.on_ray.silent_nodes import silent_nodes
from pipeline.terminal.units import counted
from trainer.on_ray.notices import ask

_logger = logging.getLogger(__name__)

_ANSWER_S = 5.0
"""Longest wait for the actor that shares the cluster among runs."""
_READ_AT_START = ("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
"""Variables that Ray Train's controller reads before the policy is told that it has started."""


class _Elsewhere:
    """Keeps new groups off the nodes that are lost though Ray does not know it yet."""

    def on_controller_start_worker_group(self, **_: Any) -> dict[str, str] | None:
        """The label selector of a new group's workers; None: any node."""
        silent = silent_nodes()
        return {NODE_ID_LABEL: f"!in({','.join(sorted(silent))})"} if silent else None


class Fixed(_Elsewhere, FixedScalingPolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller."""


class OnOnlyNode(Fixed):
    """Claims no room on a node that there is for this step alone.

    Claims are for autoscalers, and for Ray Data in the same cluster. The actor that takes them
    needs a second or more to start, which the workers would wait for.
    """

    def after_controller_start(self, train_run_context: Any) -> None:
        """Ray Train's own makes the first claim; at the end there is none to take back."""
        # The controller has read them. If they were handed on, Ray would start each worker in two
        # steps: see `trainer.on_ray.trainer.Trainer`.
        for name in _READ_AT_START:
            os.environ.pop(name, None)
        # Ray warns of how Ray Train waits in the controller, unless a variable is set that would
        # be handed on, too.
        logging.getLogger("ray").setLevel(logging.ERROR)

    def make_decision_for_non_running_worker_group(self) -> ResizeDecision:
        """Ray Train's own renews the claim, as does the next."""
        return ResizeDecision(
            num_workers=self.scaling_config.num_workers,
            resources_per_worker=self.scaling_config.resources_per_worker,
        )

    def make_decision_for_running_worker_group(self, **_: Any) -> NoopDecision:
        return NoopDecision()


class Elastic(_Elsewhere, ElasticScalingPolicy):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def make_decision_for_running_worker_group(self, **status: Any) -> Any:
        """Ask the workers to leave in place of a new size: it is that of the next group."""
        decision = super().make_decision_for_running_worker_group(**status)
        if not isinstance(decision, ResizeDecision):
            return decision
        workers = status["worker_group_state"].workers
        room = counted(decision.num_workers, "worker")
        reason = f"the cluster has room for {room}, not {len(workers)}"
        for worker in workers:
            worker.execute_async(ask, reason)
        return NoopDecision()

    def _get_reserved_resources(self) -> Mapping[str, Mapping[str, float]] | None:
        """The resources of the nodes that are there to stay; None if they are not known."""
        try:
            reserved = ray.get(
                self._autoscaling_coordinator.get_reserved_resources.remote(
                    self._requester_id, recompute=True
                ),
                timeout=_ANSWER_S,
            )
            leaving = {**(_get_draining_nodes() or {}), **silent_nodes()}
        except ray.exceptions.RayError as error:
            _logger.debug("the number of workers stays: %s", error)
            return None
        return {node: amounts for node, amounts in reserved.items() if node not in leaving}
