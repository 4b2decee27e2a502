"""Faults of the storage: temporary ones are retried, others explained to the user in one line.

S3 clients are loaded only where S3 is used, so their errors are recognised by their class names.
"""

import errno
import logging
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import PassingError, UserError, first_line, one_line
from pipeline.storage.paths import is_remote

_logger = logging.getLogger(__name__)

RETRY_AFTER_S = (1.0, 5.0, 25.0)
"""Pauses before each retry of a read or write that failed temporarily."""
RETRY_FOR_S = 60.0
"""No retry starts later than this after the first try: a stalled one has waited long enough."""

_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidClientTokenId",
    "AuthFailure",
    "Forbidden",
    "403",
    "400",  # an expired token: responses to HEAD have no other code
}
NO_ANSWER = {
    "botocore.EndpointConnectionError",
    "botocore.ConnectTimeoutError",
    "botocore.ReadTimeoutError",
    "fsspec.FSTimeoutError",
}
_NO_CREDENTIALS = {"botocore.NoCredentialsError", "botocore.PartialCredentialsError"}
_CUT_SHORT = {"aiohttp.ClientPayloadError"}
_BROKEN_CONNECTION = {"botocore.HTTPClientError", *_CUT_SHORT}
_OVERLOADED = {"SlowDown", "RequestTimeout", "Throttling", "RequestLimitExceeded"}
_NO_SUCH_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


class TooLargeError(Exception):
    """A file is larger than the caller accepts in memory."""


class NoRegularFileError(OSError):
    """A pipe, socket or device, which may block or never end."""


def is_a(error: BaseException, kinds: Collection[str]) -> bool:
    """Whether an error is of one of these classes, each as `package.ClassName`."""
    mine = (f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__)
    return any(name in kinds for name in mine)


def explain(error: BaseException) -> tuple[str, str] | None:
    """What is wrong and what to do, for an error to explain to the user; None for any other.

    A missing file is not such an error.
    """
    code = error_code(error)
    if isinstance(error, FileNotFoundError) and "<Code>NoSuchBucket" in str(error):
        code = "NoSuchBucket"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if code == "NoSuchBucket":
        return "the bucket does not exist", "check its name and the endpoint"
    if code in _REFUSED or (code and isinstance(error, PermissionError)):
        return (
            f"access refused ({code})",
            f"check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy at {endpoint}",
        )
    if is_a(error, _NO_CREDENTIALS):
        return (
            "no credentials found",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
        )
    if is_a(error, NO_ANSWER):
        return f"no answer from {endpoint}", "check AWS_ENDPOINT_URL and the network"
    if is_a(error, _CUT_SHORT):
        return f"responses of {endpoint} stay truncated after retries", "check the network"
    if is_a(error, {"obstore.BaseError"}):
        return f"cannot use {endpoint}: {str(error).splitlines()[0]}", ""
    if is_a(error, {"botocore.BotoCoreError"}) or str(error).startswith("Invalid endpoint"):
        return one_line(error), ""
    if code and not isinstance(error, FileNotFoundError):
        return f"the storage at {endpoint} answered {code}, even after retries", ""
    return None


def one_file_fault(error: Exception) -> str | None:
    """Why one file cannot be read, if the storage as a whole works; None otherwise."""
    code = error_code(error)
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return "not found"
    if isinstance(error, OSError) and error.errno in _NO_SUCH_PATH and not code:
        return "not found"
    # S3 also gives this answer for a missing key if the user may not list the bucket.
    if isinstance(error, PermissionError) and code in ("", "403", "AccessDenied"):
        return "access refused"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, NoRegularFileError):
        return "not a regular file"
    if code == "KeyTooLongError" or (isinstance(error, ValueError) and "null" in str(error)):
        return "an invalid path"
    return None


def with_retries(action: Any, *arguments: object, lasting: Collection[str] = ()) -> Any:
    """Call, and retry after the pauses of `RETRY_AFTER_S` if a read or write fails temporarily.

    Args:
        action: the function to call.
        arguments: its arguments.
        lasting: errors, named as for `is_a`, that are raised at once, in addition to those that a
            retry cannot fix.
    """
    start = time.monotonic()
    for pause_s in RETRY_AFTER_S:
        try:
            return action(*arguments)
        except Exception as error:
            is_late = time.monotonic() + pause_s > start + RETRY_FOR_S
            if is_a(error, lasting) or not _may_pass(error) or is_late:
                raise
            _logger.debug("%s; trying again in %g s", first_line(error), pause_s)
            time.sleep(pause_s)
    return action(*arguments)


def _may_pass(error: Exception) -> bool:
    """Whether a retry may help: no answer, a broken one, or an overloaded storage."""
    if isinstance(error, UserError):
        return False
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if error_code(error):
        return status >= 500 or error_code(error) in _OVERLOADED
    if isinstance(error, OSError):
        # EIO: a broken disk, or a network drive that has itself retried long enough.
        return one_file_fault(error) is None and error.errno != errno.EIO
    return is_a(error, _BROKEN_CONNECTION | NO_ANSWER)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise errors that only the user can fix as a `UserError` that names the path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None and not is_remote(path) and not isinstance(error, FileNotFoundError):
            strerror = getattr(error, "strerror", None)
            reason = None if strerror is None else (strerror, "")
        if reason is None:
            raise
        is_passing = _may_pass(error) or is_a(error, {*NO_ANSWER, "obstore.GenericError"})
        kind = PassingError if is_remote(path) and is_passing else UserError
        raise kind(path, *reason) from error


def error_code(error: BaseException) -> str:
    """The S3 error code behind an exception translated by s3fs, or an empty string."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: BaseException | None) -> dict[str, Any]:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}
