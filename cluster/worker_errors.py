"""Errors of Ray's workers as the line that the user reads, out of what Ray wrapped around them."""

import re
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayTaskError

from pipeline.errors import UserError, naming

_USER_ERROR_LINE = re.compile(
    rf"^{re.escape(f'{UserError.__module__}.{UserError.__qualname__}')}: (.+)$", re.MULTILINE
)


def unwrap(error: BaseException) -> BaseException:
    """The `UserError` of a worker inside the exceptions that Ray wrapped around it.

    Looks through the causes of tasks, actors, Ray Data, Ray Train (`worker_failures`,
    `controller_failure`) and Ray Tune. Exceptions lose their `__cause__` when they are sent between
    processes, which is how Ray Data wraps errors: of those the traceback's text still has the line.

    Returns:
        The UserError, else `error` itself.
    """
    if not isinstance(error, Exception):
        return error
    links = _links(error)
    for link in links:
        # The exception of a remote task is also an instance of its cause's class, but its text
        # is the worker's whole traceback.
        if isinstance(link, UserError) and not isinstance(link, RayTaskError):
            return link
    for link in links:
        if lines := _USER_ERROR_LINE.findall(str(link)):
            return UserError(lines[-1])
    return error


def unwrap_each(failures: Mapping[str, Exception]) -> list[Exception]:
    """`unwrap` what ended each of several runs, given by their folders, and name the run in it.

    Also a reason that does not name it, as one of several runs does not; an error other than a
    `UserError` gets a note, and keeps its traceback.
    """
    found: list[Exception] = []
    for run_path, error in failures.items():
        cause = unwrap(error)
        if isinstance(cause, UserError):
            found.append(naming(run_path, cause))
        else:
            error.add_note(f"This ended the run {run_path}")
            found.append(error)
    return found


def _links(error: BaseException) -> list[BaseException]:
    """The error and all that it wraps, outermost first, each once."""
    found = [error]
    for link in found:
        inner: list[Any] = [getattr(link, "cause", None), getattr(link, "controller_failure", None)]
        failures = getattr(link, "worker_failures", None)
        inner.extend(failures.values() if isinstance(failures, dict) else [])
        inner.append(link.__cause__)
        inner.append(None if link.__suppress_context__ else link.__context__)
        for item in inner:
            if isinstance(item, BaseException) and not any(item is known for known in found):
                found.append(item)
    return found
