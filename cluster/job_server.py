"""Ray's client of a cluster's job server, with time limits and one-line errors.

`JobSubmissionClient` of Ray 2.60 has no public hooks for either: it waits forever, and raises a
RuntimeError whose text is a traceback. Its private `_do_request`, `_raise_error`, `_address` and
`_ssl_context` are used here and nowhere else.
"""

import re
from typing import Any, NoReturn

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.session import TOKEN_HINT
from pipeline.errors import UserError

CONNECT_TIMEOUT_S = 5.0
"""Longest wait for a connection to the job server."""
VERSION_TIMEOUT_S = 10.0
"""Longest wait for its version, which is requested first and costs it nothing."""
READ_TIMEOUT_S = 60.0
"""Longest wait for any other response."""


class UnreachableError(UserError):
    """The job server does not respond; retrying may help."""


class JobServer(JobSubmissionClient):
    """Ray's client with time limits, and with a one-line error for each refusal of the server."""

    _ssl_context: Any

    def __init__(self, url: str) -> None:
        super().__init__(url)
        if self._ssl_context is None:
            # Ray passes None, which aiohttp has deprecated; its default is True.
            self._ssl_context = True

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        read_timeout_s = VERSION_TIMEOUT_S if endpoint == "/api/version" else READ_TIMEOUT_S
        options.setdefault("timeout", (CONNECT_TIMEOUT_S, read_timeout_s))
        try:
            return super()._do_request(method, endpoint, **options)
        except AuthenticationError as error:
            raise self._refusal(str(error)) from error
        except OSError as error:
            raise UnreachableError(
                self._address,
                f"no job server answers ({reason(error)})",
                "check --address and that the cluster is up",
            ) from error

    def _refusal(self, text: str) -> UserError:
        if text.startswith("Authentication required"):
            return UserError(self._address, "the server requires a token", TOKEN_HINT)
        return UserError(
            self._address,
            "access refused",
            "check the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
        )

    def _raise_error(self, response: Any) -> NoReturn:
        # An internal error's text is a traceback, whose last line with words is the reason.
        lines = [line.strip() for line in response.text.splitlines() if re.search(r"\w", line)]
        last = lines[-1] if lines else f"refused with status {response.status_code}"
        raise UserError(self._address, f"{re.sub('^[A-Za-z_.]+(Error|Exception): ', '', last)}")


def reason(error: BaseException) -> str:
    """The text of an error, or of its innermost cause, in one line of at most 200 characters."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    text = "".join(char if char.isprintable() else " " for char in str(error))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
