"""Serves a model by replicas on Ray Serve, which starts lost ones anew.

In: a model that all nodes can read. Steps: start Serve without its HTTP proxies; start the
replicas; hand each request to one of them, and to another if that is lost. Out: a `Model` for the
door in `trainer.serving`, for the length of a block.

A replica opens no port: by default it would unpickle what anybody sends, on every interface.
"""

import asyncio
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve._private import replica as serve_replica
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from pipeline.errors import UserError
from pipeline.on_ray import process
from pipeline.on_ray.shared_files import SharedPaths, check_here, check_shared, seen_here
from pipeline.on_ray.tasks import MAX_LOST
from pipeline.terminal import log
from trainer.on_ray.device import worker_device
from trainer.on_ray.settings import Workers
from trainer.on_ray.workers import fit_workers
from trainer.serving.answer import Answers, Scores
from trainer.serving.decoders import Decoders
from trainer.serving.refusal import RefusedError
from trainer.serving.reply import Reply
from trainer.serving.request import TagRequest
from trainer.serving.settings import ServeLimits
from trainer.tagging.gpu_faults import GpuError
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.windows import Samples

_logger = logging.getLogger(__name__)

_DEPLOYMENT = "model"
_BATCH_WAIT_S = 0.01
"""How long a window waits for others, if the model is idle."""
_IN_REPLICA = 64
"""Requests that one replica works on at once: enough to fill batches from."""
_LOOK_EVERY_S = 2.0
"""Between two looks at a replica. A dead one is replaced after the next."""
_HANGS_AFTER_S = 60.0
_RETRY_S = 0.5
_STATUS_S = 5.0
_OPEN_PORT = "add_port_to_grpc_server"
"""Function that a replica calls when it has started."""
_QUIET = {"RAY_SERVE_LOG_TO_STDERR": "0"}
"""Serve's own log stays in the files of the session."""
_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaSetup:
    """What a replica starts from."""

    choice: ModelChoice
    limits: ServeLimits
    batch_size: int
    """Windows that the model gets at once."""
    paths: tuple[str, ...]
    """Local paths that its node must have."""
    threads: int
    log_level: int


class Replica:
    """A process with the model."""

    def __init__(self, setup: ReplicaSetup) -> None:
        process.set_up(setup.log_level)
        _open_no_port()
        torch.set_num_threads(setup.threads)
        check_here(setup.paths)
        self._tagger = load_tagger(setup.choice, worker_device())
        # The model computes in one thread, away from the event loop.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._answers = Answers(
            self._tagger,
            Decoders(
                sample_rate_hz=self._tagger.fbank.sample_rate_hz,
                max_duration_s=setup.limits.max_duration_s,
            ),
            serve.batch(max_batch_size=setup.batch_size, batch_wait_timeout_s=_BATCH_WAIT_S)(
                self._score
            ),
            max_windows=setup.limits.max_windows,
            in_turn=setup.batch_size,
        )

    async def tag(self, request: TagRequest) -> Reply:
        """The answer to a request."""
        return await self._answers.answer(request)

    async def _score(self, windows: list[Samples]) -> list[Scores]:
        loop = asyncio.get_running_loop()
        try:
            outputs = await loop.run_in_executor(self._thread, self._tagger.score, windows)
        except GpuError as error:
            _logger.warning("%s: %s", error.where, error.what)
            # This process can compute no more. Serve starts another, which gets the requests.
            os._exit(1)
        return list(outputs.scores)


class Replicas:
    """The model as the door sees it."""

    def __init__(self, handle: DeploymentHandle[Any], name: str) -> None:
        self._handle, self._name = handle, name
        self._lost: set[str] = set()

    async def tag(self, request: TagRequest) -> Reply:
        """The answer of a replica; if that is lost meanwhile, of another.

        Raises:
            RefusedError: several were lost with this request.
        """
        for _ in range(MAX_LOST + 1):
            try:
                reply: Reply = await self._handle.tag.remote(request)
                return reply
            except RayTaskError:
                raise
            except RayServeException as error:
                raise RefusedError(503, "no replica of the model is running") from error
            except RayError as error:
                self._note_loss(error)
            await asyncio.sleep(_RETRY_S)
        raise RefusedError(503, "the model was lost several times meanwhile; try again")

    async def is_ready(self) -> bool:
        """Whether a replica runs."""
        try:
            async with asyncio.timeout(_STATUS_S):
                status = await asyncio.to_thread(serve.status)
            deployment = status.applications[self._name].deployments[_DEPLOYMENT]
            return any(
                state == "RUNNING" and num for state, num in deployment.replica_states.items()
            )
        except (TimeoutError, KeyError, RayError):
            return False

    def _note_loss(self, error: RayError) -> None:
        """Once for each replica, however many requests it had."""
        lost = str(getattr(error, "actor_id", None))
        if lost not in self._lost:
            self._lost.add(lost)
            _logger.warning("a replica is lost; its requests go to another, and it starts again")


@contextmanager
def replicas(
    choice: ModelChoice,
    workers: Workers,
    limits: ServeLimits,
    *,
    batch_size: int,
    name: str,
    keeps_running: bool,
) -> Iterator[Replicas]:
    """Run replicas of a model on a connected Ray for the length of a block.

    Args:
        choice: the model; every node must be able to read it.
        workers: the replicas; all of them have to fit.
        limits: on requests.
        batch_size: windows that the model gets at once.
        name: of the application on Serve; one with this name is replaced.
        keeps_running: whether Ray goes on after the block, so that Serve must be ended.

    Raises:
        UserError: there is no room for the replicas; they cannot start; or the nodes do not see the
            same files.
    """
    one, fits = fit_workers(replace(workers, num=1), runs=workers.num)
    if fits < workers.num:
        raise UserError(
            f"--replicas {workers.num}",
            f"the cluster has room for {fits}",
            "lower it, --cpus-per-replica or --gpus-per-replica",
        )
    shared = SharedPaths(read=tuple(filter(None, [choice.path, choice.labels])))
    check_shared(shared)
    setup = ReplicaSetup(
        choice=choice,
        limits=limits,
        batch_size=batch_size,
        paths=seen_here(shared),
        threads=one.cpus,
        log_level=log.level(),
    )
    handle = _run(setup, one, workers.num, name)
    try:
        yield Replicas(handle, name)
    finally:
        if keeps_running:
            _end(name)


def _run(setup: ReplicaSetup, one: Workers, num: int, name: str) -> DeploymentHandle[Any]:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    serve.start(
        proxy_location=ProxyLocation.Disabled,
        logging_config=_LOGGING,
        controller_options={"runtime_env": {"env_vars": _QUIET}},
    )
    deployment = serve.deployment(
        name=_DEPLOYMENT,
        num_replicas=num,
        ray_actor_options={
            "num_cpus": one.cpus,
            "num_gpus": one.gpus if one.use_gpu else 0,
            "runtime_env": {"env_vars": _QUIET},
        },
        max_ongoing_requests=max(_IN_REPLICA, setup.batch_size),
        health_check_period_s=_LOOK_EVERY_S,
        health_check_timeout_s=_HANGS_AFTER_S,
        # The door is closed before: nothing is in flight.
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=1.0,
        logging_config=_LOGGING,
    )(Replica)
    try:
        return serve.run(deployment.bind(setup), name=name, route_prefix=None)
    except RuntimeError as error:
        raise UserError("", f"the replicas cannot start ({_cause(name) or error})") from error


def _cause(name: str) -> str:
    """Why the replicas of an application could not start, in one line; empty if Serve does not say.

    Serve gives the traceback of the constructor as text, which ends with the exception.
    """
    with suppress(KeyError, RayError, RayServeException):
        message = serve.status().applications[name].deployments[_DEPLOYMENT].message
        last = next((line for line in reversed(message.splitlines()) if line.strip()), "")
        return last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    return ""


def _end(name: str) -> None:
    """End the replicas, and Serve if it serves nothing else."""
    serve.delete(name)
    if not serve.status().applications:
        serve.shutdown()


def _open_no_port() -> None:
    """Keep this replica from listening.

    Requests reach it as calls of an actor, which Ray guards. Ray 2.60 also opens a port for
    requests by gRPC, `[::]:0`, which asks for no token and unpickles what it gets.
    """
    setattr(serve_replica, _OPEN_PORT, lambda server, address: 0)
