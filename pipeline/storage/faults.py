"""Faults of the storage: temporary ones are retried, others explained to the user in one line.

Libraries are loaded only where buckets are used, so their errors are recognised by the names of
their classes.
"""

import errno
import logging
import math
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import PassingError, UserError, first_line, one_line
from pipeline.storage.paths import UnusableKeyError, is_remote

_logger = logging.getLogger(__name__)

RETRY_AFTER_S = (1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)
"""Pauses before each retry of a read or write that failed temporarily."""
RETRY_FOR_S = 60.0
"""No retry starts later than this after the first try: a stalled one has waited long enough."""
RETRY_VARIABLE = "AST_RAY_RETRY_S"
"""Environment variable with another time than `RETRY_FOR_S`."""

SILENT_FOR_S = 5.0
"""A pause that would end later is announced, if the storage has never answered."""
_answered: set[str] = set()
"""Endpoints that need no announcement."""

_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidClientTokenId",
    "AuthFailure",
    "AuthenticationFailed",
    "Forbidden",
}
_REFUSED_STATUS = {401, 403}
_NAMELESS_REFUSAL = 400
"""Without a code: an expired token, as responses to HEAD have no code."""
_OVERLOADED = {"SlowDown", "RequestTimeout", "Throttling", "RequestLimitExceeded"}
_OVERLOADED_STATUS = {408, 429}
LOST_UPLOAD = "NoSuchUpload"
"""A server has forgotten an upload in parts: the object is written again."""
_NO_SUCH_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
ENDPOINT_VARIABLES = {
    "s3": "AWS_ENDPOINT_URL",
    "gs": "GOOGLE_BASE_URL",
    "az": "AZURE_STORAGE_ENDPOINT",
}
"""Name another address than the provider's own."""


class ObjectStoreError(Exception):
    """A request to a bucket failed: an answer other than success, none, or half of one."""

    def __init__(
        self, path: str, *, status: int, code: str, text: str, endpoint: str, is_anonymous: bool
    ) -> None:
        """As the storage said it.

        Args:
            path: of the object or the prefix.
            status: of the HTTP response; 0 without a whole one.
            code: the storage's name for the error; empty without one.
            text: the message of the client, one line.
            endpoint: the storage's address.
            is_anonymous: the request was not signed, as no credentials were found.
        """
        super().__init__(path, status, code, text, endpoint, is_anonymous)
        self.path, self.status, self.code, self.text = path, status, code, text
        self.endpoint, self.is_anonymous = endpoint, is_anonymous

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, self.args

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"

    @property
    def is_refusal(self) -> bool:
        """Whether the storage refused the credentials or the request."""
        return (
            self.code in _REFUSED
            or self.status in _REFUSED_STATUS
            or (not self.code and self.status == _NAMELESS_REFUSAL)
        )

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        if self.code == LOST_UPLOAD or self.code in _OVERLOADED:
            return True
        return self.status in (0, *_OVERLOADED_STATUS) or self.status >= 500

    @property
    def names_one_file(self) -> bool:
        """Whether the object is at fault rather than the storage as a whole."""
        # S3 also gives 403 for a missing key if the user may not list the bucket.
        return self.code == "KeyTooLongError" or (
            self.status == 403 and self.code in ("", "AccessDenied", "403")
        )


def _remade(
    path: str, status: int, code: str, text: str, endpoint: str, is_anonymous: bool
) -> ObjectStoreError:
    return ObjectStoreError(
        path, status=status, code=code, text=text, endpoint=endpoint, is_anonymous=is_anonymous
    )


class TooLargeError(Exception):
    """A file is larger than the caller accepts in memory."""


class NoRegularFileError(OSError):
    """A pipe, socket or device, which may block or never end."""


class NoFileError(UserError):
    """In place of a file there is a folder, pipe, socket or device."""


def is_a(error: BaseException, kinds: Collection[str]) -> bool:
    """Whether an error is of one of these classes, each as `package.ClassName`."""
    mine = (f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__)
    return any(name in kinds for name in mine)


def explain(error: BaseException) -> tuple[str, str] | None:
    """What is wrong and what to do, for an error to explain to the user; None for any other.

    A missing file is not such an error.
    """
    if isinstance(error, ObjectStoreError):
        return _explain_answer(error)
    if is_a(error, {"obstore.BaseError"}):
        return f"cannot use the storage: {first_line(error)}", "see docs/storage.md"
    if is_a(error, {"botocore.BotoCoreError"}) or str(error).startswith("Invalid endpoint"):
        return one_line(error), ""
    return None


def _explain_answer(error: ObjectStoreError) -> tuple[str, str]:
    scheme = error.path.partition("://")[0]
    answer = error.code or str(error.status)
    if error.code in _NO_BUCKET:
        return "the bucket does not exist", "check its name and the endpoint"
    if error.is_refusal and error.is_anonymous:
        return (
            f"no credentials found, and {error.endpoint} refuses unsigned requests ({answer})",
            f"set {_CREDENTIALS[scheme]} or AWS_PROFILE",
        )
    if error.is_refusal:
        return (
            f"access refused ({answer})",
            f"check {_CREDENTIALS[scheme]} and the bucket's policy at {error.endpoint}",
        )
    if error.status in (301, 307, 308):
        return (
            f"{error.endpoint} has the bucket in another region",
            "set AWS_REGION to the bucket's",
        )
    if error.status:
        retried = ", even after retries" if error.may_pass else ""
        return f"the storage at {error.endpoint} answered {answer}{retried}", ""
    if "body error" in error.text or "response body" in error.text:
        return f"responses of {error.endpoint} stay truncated after retries", "check the network"
    if "error sending request" in error.text or "timed out" in error.text:
        return (
            f"no answer from {error.endpoint}",
            f"check {ENDPOINT_VARIABLES[scheme]} and the network",
        )
    return f"cannot use {error.endpoint}: {error.text}", ""


def one_file_fault(error: Exception) -> str | None:
    """Why one file cannot be read, if the storage as a whole works; None otherwise."""
    if isinstance(error, FileNotFoundError):
        return "not found"
    if isinstance(error, OSError) and error.errno in _NO_SUCH_PATH:
        return "not found"
    if isinstance(error, ObjectStoreError):
        if not error.names_one_file:
            return None
        return "an invalid path" if error.code == "KeyTooLongError" else "access refused"
    if isinstance(error, PermissionError):
        return "access refused"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, NoRegularFileError):
        return "not a regular file"
    if isinstance(error, UnicodeEncodeError | UnusableKeyError) or (
        isinstance(error, ValueError) and "null" in str(error)
    ):
        return "an invalid path"
    return None


def with_retries(action: Any, *arguments: object) -> Any:
    """Call, and retry for a minute, after the pauses of `RETRY_AFTER_S`, what fails temporarily.

    Raises:
        UserError: `RETRY_VARIABLE` gives another time than a minute, and is no number of seconds.
    """
    start, retry_for_s = time.monotonic(), _retry_for_s()
    for pause_s in _pauses_s(retry_for_s):
        try:
            return action(*arguments)
        except Exception as error:
            left_s = start + retry_for_s - time.monotonic()
            if not _may_pass(error) or left_s <= 0:
                raise
            _logger.debug("%s; trying again in %g s", first_line(error), pause_s)
            if time.monotonic() - start + pause_s > SILENT_FOR_S:
                _note_waiting(error, retry_for_s)
            time.sleep(min(pause_s, left_s))
    return action(*arguments)


def _retry_for_s() -> float:
    text = os.environ.get(RETRY_VARIABLE) or str(RETRY_FOR_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise UserError(RETRY_VARIABLE, f"must be a number of seconds, at least 0, got {text!r}")
    return seconds


def _pauses_s(retry_for_s: float) -> Iterator[float]:
    yield from RETRY_AFTER_S
    while retry_for_s > RETRY_FOR_S:
        yield RETRY_AFTER_S[-1]


def note_answer(endpoint: str) -> None:
    """Remember that a storage has answered in this process, so its address is right."""
    _answered.add(endpoint)


def _note_waiting(error: Exception, retry_for_s: float) -> None:
    """Say once that a storage has not answered at all yet: its address may be mistyped."""
    if isinstance(error, ObjectStoreError) and not error.status and error.endpoint not in _answered:
        _answered.add(error.endpoint)
        variable = ENDPOINT_VARIABLES[error.path.partition("://")[0]]
        _logger.info(
            "no answer from %s yet; trying for %g s (is %s right?)",
            *(error.endpoint, retry_for_s, variable),
        )


def _may_pass(error: Exception) -> bool:
    """Whether a retry may help: no answer, a broken one, or an overloaded storage."""
    if isinstance(error, ObjectStoreError):
        return error.may_pass
    # EIO: a broken disk, or a network drive that has itself retried long enough.
    return isinstance(error, OSError) and one_file_fault(error) is None and error.errno != errno.EIO


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise errors that only the user can fix as a `UserError` that names the path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, IsADirectoryError | NoRegularFileError):
            what = one_file_fault(error) or first_line(error)
            raise NoFileError(path, what, "remove it or give another path") from error
        reason = explain(error)
        if reason is None and not is_remote(path) and not isinstance(error, FileNotFoundError):
            strerror = getattr(error, "strerror", None)
            reason = None if strerror is None else (strerror, "")
        if reason is None:
            raise
        kind = PassingError if is_remote(path) and _may_pass(error) else UserError
        raise kind(path, *reason) from error
