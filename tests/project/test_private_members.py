"""Private members of Ray and PyTorch that we use still exist and work as before.

Each stands in one file; a new version of a library that moves it fails here first.
"""

import inspect
import logging
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import ray
import torch
from ray._private import ray_logging, services
from ray.dashboard.modules.dashboard_sdk import SubmissionClient
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    _AutoscalingCoordinatorActor,
)
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.exceptions import ActorUnavailableError
from ray.job_submission import JobSubmissionClient
from ray.serve._private import replica as serve_replica
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.context import TrainContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.preemption import PreemptionContext
from ray.train.v2._internal.execution.scaling_policy import (
    ElasticScalingPolicy,
    FixedScalingPolicy,
    NoopDecision,
    scaling_policy,
)
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError
from ray.train.v2.api.preemption import PreemptionInfo
from torch import nn

from cluster import local_ray, loopback, ray_noise
from cluster.job_server import JobServer
from pipeline.errors import UserError
from pipeline.on_ray.head_node import HEAD_NODE
from trainer.model import compile as compiling
from trainer.on_ray import notices
from trainer.on_ray.actor_pool import VALUES
from trainer.on_ray.actors import Failures
from trainer.on_ray.joining import JoinByFile
from trainer.on_ray.retry import MAX_LOST_AT_START, Retrying
from trainer.on_ray.scaling import Elastic, Fixed, OnOnlyNode
from trainer.on_ray.trainer import UNWANTED, Trainer
from trainer.optim.optimiser import make_optimiser
from trainer.optim.settings import OptimiserSettings
from trainer.optim.skip import step_unless

ROOT = Path(__file__).parents[2]
PRIVATE = {
    "cluster/job_server.py": ("_do_request", "_raise_error", "_ssl_context"),
    "trainer/on_ray/trainer.py": (
        "_create_default_callbacks",
        "_initialize_and_run_controller",
        "TrainController",
    ),
    "trainer/on_ray/scaling.py": (
        "_get_draining_nodes",
        "_get_reserved_resources",
        "on_controller_start_worker_group",
    ),
    "trainer/on_ray/actors.py": ("WorkerGroupCallback",),
    "trainer/on_ray/actor_pool.py": ("ActorPoolMapOperator", "_transformer_ref", "_context_ref"),
    "trainer/on_ray/notices.py": ("get_train_context",),
    "trainer/on_ray/serve.py": ("ray.serve._private", "add_port_to_grpc_server"),
    "trainer/on_ray/retry.py": ("_is_retryable_error",),
    "pipeline/on_ray/head_node.py": ("__internal_head__",),
    "pipeline/on_ray/autoscaler.py": ("__autoscaling_status", "ray._raylet", "autoscaler_pb2"),
    "trainer/model/compile.py": ("torch._dynamo",),
    "trainer/optim/skip.py": ("found_inf",),
    "cluster/ray_noise.py": ("ray._private.", "ray.dashboard"),
    "cluster/loopback.py": ("ENABLE_RAY_CLUSTER",),
}
"""Each member, and the one file that may name it."""


@pytest.mark.parametrize("path", PRIVATE)
def test_each_private_member_is_used_in_one_file(path: str) -> None:
    sources = [
        source
        for folder in ("pipeline", "trainer", "cluster")
        for source in (ROOT / folder).rglob("*.py")
    ]
    for member in PRIVATE[path]:
        users = [
            str(source.relative_to(ROOT))
            for source in sources
            if re.search(rf"(?<!`){re.escape(member)}", source.read_text())
        ]
        assert users == [path], member


def test_job_client_calls_the_methods_we_override() -> None:
    assert issubclass(JobServer, JobSubmissionClient)
    for name in ("_do_request", "_raise_error"):
        ours, theirs = getattr(JobServer, name), getattr(SubmissionClient, name)
        assert ours is not theirs
        assert f"self.{name}(" in inspect.getsource(JobSubmissionClient)
    request = inspect.signature(SubmissionClient._do_request)
    assert {"method", "endpoint", "kwargs"} <= request.parameters.keys()
    for name in ("_ssl_context", "_address"):
        sources = inspect.getsource(JobSubmissionClient) + inspect.getsource(SubmissionClient)
        assert f"self.{name} = " in sources


def test_trainer_leaves_out_two_helpers() -> None:
    callbacks = (PlacementGroupCleanerCallback, DatasetsCallback)
    assert {callback.__name__ for callback in callbacks} == UNWANTED

    def kinds(kind: type[DataParallelTrainer], **options: Any) -> set[str]:
        config = ray.train.ScalingConfig(num_workers=1)
        trainer = kind(lambda: None, scaling_config=config, **options)
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    assert kinds(DataParallelTrainer) - kinds(Trainer, check=lambda: None) == UNWANTED


def test_trainer_hands_our_policies_to_the_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    checked: list[str] = []
    monkeypatch.setattr(
        DataParallelTrainer,
        "_initialize_and_run_controller",
        lambda self, **arguments: given.update(arguments),
    )
    for num_workers, kind in ((2, Fixed), ((1, 2), Elastic)):
        config = ray.train.ScalingConfig(num_workers=num_workers)
        check = partial(checked.append, kind.__name__)
        trainer = Trainer(lambda: None, check=check, scaling_config=config)
        trainer._initialize_and_run_controller(scaling_policy=object())
        assert checked[-1:] == [kind.__name__]
        assert isinstance(given["scaling_policy"], kind)
        assert isinstance(given["failure_policy"], Retrying)
    asking = inspect.getsource(TrainController._start_worker_group)
    assert "in self._controller_callbacks" in asking
    assert "callback.on_controller_start_worker_group(" in asking
    assert "_get_reserved_resources()" in inspect.getsource(ElasticScalingPolicy)
    assert "_initialize_and_run_controller(" in inspect.getsource(DataParallelTrainer.fit)
    assert "recompute" in inspect.getsource(_AutoscalingCoordinatorActor.get_reserved_resources)


def test_controller_on_the_only_node_starts_while_the_training_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As Ray Train starts it, but without variables of its own."""
    events: list[str] = []

    def step(name: str) -> Any:
        return SimpleNamespace(remote=lambda **_: events.append(name))

    def check() -> None:
        events.append("check")
        if "refused" in events:
            raise UserError("model.depth", "must be at most 12")

    def start(**arguments: Any) -> Any:
        assert isinstance(arguments["scaling_policy"], OnOnlyNode)
        events.append("start")
        return SimpleNamespace(run=step("run"), get_result=step("result"))

    monkeypatch.setattr(ray, "remote", lambda **_: lambda kind: SimpleNamespace(remote=start))
    monkeypatch.setattr(ray, "get", lambda value: value)
    config = ray.train.ScalingConfig(num_workers=1)
    joining = JoinByFile(folder=str(tmp_path), listens=True, is_only_node=True)
    trainer = Trainer(lambda: None, check=check, scaling_config=config, backend_config=joining)
    trainer._initialize_and_run_controller()
    assert events == ["start", "check", "run", "result"]
    events[:] = ["refused"]
    with pytest.raises(UserError, match="at most 12"):
        trainer._initialize_and_run_controller()
    assert events == ["refused", "start", "check"]
    theirs = inspect.getsource(DataParallelTrainer._initialize_and_run_controller)
    for call in (
        ")(TrainController)",
        "controller_actor_cls.remote(**controller_init_kwargs)",
        "ray.get(controller.run.remote())",
        "ray.get(controller.get_result.remote())",
    ):
        assert call in theirs


def test_workers_on_the_only_node_get_no_variables_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The controller has read them before the policy is told that it started."""
    for name in ENV_VARS_TO_PROPAGATE:
        monkeypatch.delenv(name, raising=False)
    for name, value in local_ray.variables().items():
        monkeypatch.setenv(name, value)
    assert WorkerGroup._get_worker_runtime_env({}) != {"env_vars": {}}
    config = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 3})
    policy = OnOnlyNode(config)
    policy.after_controller_start(None)
    assert WorkerGroup._get_worker_runtime_env({}) == {"env_vars": {}}
    source = inspect.getsource(TrainController.__init__)
    for variable in ("ENABLE_PREEMPTION_WATCHER_ENV_VAR", "HEALTH_CHECK_INTERVAL_S_ENV_VAR"):
        assert source.index(variable) < source.index("self._start()")


def test_claims_are_made_where_a_node_can_be_shared_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the end, Ray Train takes back what it has claimed alone."""
    config = ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 3})
    claims = _claims(monkeypatch, Fixed(config))
    assert claims > 0
    assert _claims(monkeypatch, OnOnlyNode(config)) == 0


def _claims(monkeypatch: pytest.MonkeyPatch, policy: FixedScalingPolicy) -> int:
    """How often a policy asks for what makes claims; checks what it decides."""
    asked: list[str] = []

    def client(requester: str) -> Any:
        asked.append(requester)
        return MagicMock()

    monkeypatch.setattr(scaling_policy, "TrainAutoscalingCoordinatorClient", client)
    policy.after_controller_start(SimpleNamespace(run_id="run"))
    decision = policy.make_decision_for_non_running_worker_group()
    assert (decision.num_workers, decision.resources_per_worker) == (2, {"CPU": 3})
    status = {"worker_group_state": None, "worker_group_status": None}
    assert isinstance(policy.make_decision_for_running_worker_group(**status), NoopDecision)
    policy.before_controller_abort()
    return len(asked)


def test_failures_are_called_by_the_names_that_ray_train_has() -> None:
    names = {"after_worker_group_start", "after_worker_group_poll_status"}
    assert names <= vars(Failures).keys() & vars(WorkerGroupCallback).keys()


def test_actors_of_ray_data_are_given_the_references_that_ours_replaces() -> None:
    starting = inspect.getsource(ActorPoolMapOperator._start_actor)
    for reference, value in VALUES.items():
        assert f"=self.{reference}," in starting
        assert f"ray.put(self.{value})" in inspect.getsource(MapOperator)


def test_worker_that_is_lost_at_the_start_is_replaced_some_times() -> None:
    policy = Retrying(ray.train.FailureConfig(max_failures=-1), logging.INFO)
    lost = ControllerError(ActorUnavailableError("lost", None))
    decisions = [policy.make_decision(lost) for _ in range(MAX_LOST_AT_START + 1)]
    assert [decision.value for decision in decisions] == ["RETRY"] * MAX_LOST_AT_START + ["RAISE"]
    assert policy.make_decision(ControllerError(ValueError("a bug"))).value == "RAISE"


def test_worker_learns_of_the_end_of_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    known = PreemptionContext()
    context = SimpleNamespace(preemption_context=known)
    monkeypatch.setattr(notices, "get_train_context", lambda: context)
    assert {field.name for field in fields(TrainContext)} >= {"preemption_context"}
    assert notices.reason() == ""
    known.preemption_info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [0]})
    assert "shut down" in notices.reason()


def test_replica_opens_its_port_by_the_function_that_ours_replaces() -> None:
    """After the model is there, whose constructor replaces it."""
    module = inspect.getsource(serve_replica)
    assert len(re.findall(r"\.add_(?:in)?secure_port\(", module)) == 0
    assert module.count("add_port_to_grpc_server(self._server,") == 1
    first = inspect.getsource(serve_replica.Replica.initialize)
    assert first.index("initialize_callable()") < first.index("_on_initialized()")


def test_head_node_has_a_resource_for_it_alone(session: None) -> None:
    assert ray.cluster_resources()[HEAD_NODE] == 1.0


def test_setting_that_limits_graphs_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    config = torch._dynamo.config
    with config.patch(recompile_limit=8, optimize_ddp=True):
        compiling.compile_blocks(nn.Sequential(nn.Linear(2, 2)))
        assert config.recompile_limit == compiling.MAX_GRAPHS
        assert config.optimize_ddp is False


@pytest.mark.parametrize("is_bad", [False, True])
def test_fused_optimiser_skips_a_bad_step(is_bad: bool) -> None:
    model = nn.Linear(3, 2)
    optimiser = make_optimiser(model.parameters(), OptimiserSettings())
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    before = [value.clone() for value in model.parameters()]
    model(torch.ones(1, 3)).sum().backward()
    step_unless(optimiser, torch.tensor(is_bad))
    unchanged = [
        torch.equal(value, old) for value, old in zip(model.parameters(), before, strict=True)
    ]
    assert unchanged == [is_bad, is_bad]
    assert all(int(state["step"]) == 1 - is_bad for state in optimiser.state.values())


def test_ray_reads_the_lines_to_skip_on_import() -> None:
    code = (
        "from cluster.ray_noise import skip_lines_of_workers; skip_lines_of_workers();"
        "from ray._private import ray_logging;"
        "print(ray_logging.stderr_deduplicator.skip_re.pattern)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ray_noise._SKIPPED_LINES
    assert hasattr(ray_logging.stderr_deduplicator, "skip_re")


def test_ray_keeps_a_local_session_on_loopback_by_this_switch() -> None:
    before = services.get_node_ip_address()
    with loopback.starting_on_loopback():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert services.get_node_ip_address() == before
