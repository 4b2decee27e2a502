"""Unwrap errors of workers from Ray's exceptions, down to the line for the user.

Also for a worker that left no error since it was killed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

from cluster.machine import memory_kills
from pipeline.errors import UserError

_LOST = (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)
"""What Ray raises for a process that is gone."""

_KILLS_BEFORE = memory_kills()


def unwrap(error: BaseException) -> BaseException:
    """The `UserError` of a worker inside the exceptions that Ray wrapped around it.

    Looks through the causes of errors in tasks, actors, Ray Data, Ray Train (`worker_failures`,
    `controller_failure`, `health_check_failure`) and Ray Tune. Tasks on Ray Data return their
    errors: `pipeline.on_ray.tasks`.

    Returns:
        The UserError; a new one if a process of Ray was killed, and nothing else happened; else
        `error` itself.
    """
    if not isinstance(error, Exception):
        return error
    chain = links(error)
    for link in chain:
        # The exception of a remote task is also an instance of its cause's class, but its text
        # is the worker's whole traceback.
        if isinstance(link, UserError) and not isinstance(link, RayTaskError):
            return link
    lost = next((link for link in chain if isinstance(link, _LOST)), None)
    if isinstance(lost, RayActorError) and lost.actor_init_failed:
        return error
    if lost is None or _has_failure_of_its_own(chain):
        return error
    return _killed(lost)


def _has_failure_of_its_own(chain: Sequence[BaseException]) -> bool:
    """Whether a worker failed by an exception, after which Ray may have killed others."""
    failures = [
        failure
        for link in chain
        if isinstance(failures := getattr(link, "worker_failures", None), dict)
        for failure in failures.values()
    ]
    return any(not any(isinstance(link, _LOST) for link in links(failure)) for failure in failures)


def _killed(lost: BaseException) -> UserError:
    if isinstance(lost, OutOfMemoryError) or memory_kills() > _KILLS_BEFORE:
        return UserError(
            "",
            "processes were killed for lack of memory",
            "give the step more memory, or let fewer workers run at once (--num-cpus, --workers), "
            "and run the same command again to resume",
        )
    name = re.search(r"class_name: (\w+)", str(lost))
    return UserError(
        "",
        f"a process of Ray {f'({name[1]}) ' if name else ''}was killed or crashed",
        "run the same command again to resume; Ray's logs, in ray/session_latest/logs of the "
        "temporary folder, may say why",
    )


def unwrap_each(failures: Mapping[str, Exception]) -> list[Exception]:
    """`unwrap` the error of each failed run, given by its folder, and name the run in it.

    Each `UserError` is prefixed with its run, since it may not say which; any other error gets a
    note and keeps its traceback.
    """
    unwrapped: list[Exception] = []
    for run_path, error in failures.items():
        cause = unwrap(error)
        if isinstance(cause, UserError):
            unwrapped.append(cause.prefixed(run_path))
        else:
            error.add_note(f"This ended the run {run_path}")
            unwrapped.append(error)
    return unwrapped


def links(error: BaseException) -> list[BaseException]:
    """The error and all errors that it wraps, outermost first, each once."""
    wrapped = [error]
    for link in wrapped:
        wrappers = ("cause", "controller_failure", "health_check_failure")
        inner: list[Any] = [getattr(link, name, None) for name in wrappers]
        failures = getattr(link, "worker_failures", None)
        inner.extend(failures.values() if isinstance(failures, dict) else [])
        inner.append(link.__cause__)
        inner.append(None if link.__suppress_context__ else link.__context__)
        for cause in inner:
            if isinstance(cause, BaseException) and not any(cause is known for known in wrapped):
                wrapped.append(cause)
    return wrapped
