"""Unwrap errors of workers from Ray's exceptions, down to the line for the user."""

from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayTaskError

from pipeline.errors import UserError


def unwrap(error: BaseException) -> BaseException:
    """The `UserError` of a worker inside the exceptions that Ray wrapped around it.

    Looks through the causes of errors in tasks, actors, Ray Data, Ray Train (`worker_failures`,
    `controller_failure`) and Ray Tune. Tasks on Ray Data return their errors: `pipeline.on_ray`.

    Returns:
        The UserError, else `error` itself.
    """
    if not isinstance(error, Exception):
        return error
    for link in links(error):
        # The exception of a remote task is also an instance of its cause's class, but its text
        # is the worker's whole traceback.
        if isinstance(link, UserError) and not isinstance(link, RayTaskError):
            return link
    return error


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
        inner: list[Any] = [getattr(link, "cause", None), getattr(link, "controller_failure", None)]
        failures = getattr(link, "worker_failures", None)
        inner.extend(failures.values() if isinstance(failures, dict) else [])
        inner.append(link.__cause__)
        inner.append(None if link.__suppress_context__ else link.__context__)
        for cause in inner:
            if isinstance(cause, BaseException) and not any(cause is known for known in wrapped):
                wrapped.append(cause)
    return wrapped
