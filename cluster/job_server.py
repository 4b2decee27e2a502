"""Ray's client of a cluster's job server, with time limits and one-line errors.

`JobSubmissionClient` of Ray 2.60 has no public hooks for either: it waits forever, and raises a
RuntimeError whose text is a traceback. Its private `_do_request`, `_raise_error`, `_address` and
`_ssl_context` are used here and nowhere else.

Server: the given address, else `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS` if it is an http(s)
URL, else http://127.0.0.1:8265. For a server with token authentication, set `RAY_AUTH_MODE=token`
and `RAY_AUTH_TOKEN` (or `RAY_AUTH_TOKEN_PATH`, or `~/.ray/auth_token`); Ray sends the token.
"""

import http.client
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from cluster.program import program_name
from cluster.ray_noise import quiet_loggers
from cluster.session import TOKEN_HINT
from pipeline.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"

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
                "check --address, with the port (8265, as a rule), and that the cluster is up",
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
        what = re.sub("^[A-Za-z_.]+(Error|Exception): ", "", last)
        is_unknown = response.status_code == 404 and what.startswith("Job ")
        remedy = f"{program_name()} jobs lists all" if is_unknown else ""
        raise UserError(self._address, what, remedy)


def reason(error: BaseException) -> str:
    """The text of an error, or of its innermost cause, in one line of at most 200 characters."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    if isinstance(error, http.client.BadStatusLine):
        return "what listens there does not speak HTTP"
    text = "".join(char if char.isprintable() else " " for char in str(error))
    text = " ".join(text.split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def connect(address: str | None) -> JobServer:
    """The job server at an address, which is asked for its version.

    Raises:
        UserError: it does not answer, refuses, or is no job server.
    """
    url = _server_url(address, os.environ)
    quiet_loggers()
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    # In Ray, this variable and RAY_ADDRESS override the address that is passed.
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return JobServer(url)
    except AuthenticationError as error:
        raise _no_token(url, os.environ) from error
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise UserError(url, f"not a Ray job server ({reason(error)})") from error
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _no_token(url: str, environ: Mapping[str, str]) -> UserError:
    """Ray asks for a token, and finds none."""
    path = environ.get("RAY_AUTH_TOKEN_PATH", "")
    if path and not environ.get("RAY_AUTH_TOKEN") and not Path(path).is_file():
        return UserError("RAY_AUTH_TOKEN_PATH", f"no file {path}", "put the server's token there")
    return UserError(url, "RAY_AUTH_MODE is token, but no token is set", TOKEN_HINT)


def _server_url(address: str | None, environ: Mapping[str, str]) -> str:
    """The job server's URL, without a trailing slash.

    Raises:
        UserError: it is not an http(s) URL.
    """
    ray_address = environ.get("RAY_ADDRESS", "")
    if not ray_address.startswith(("http://", "https://")):
        ray_address = ""  # A cluster's host:port, where no job server listens.
    url = address or environ.get("RAY_API_SERVER_ADDRESS") or ray_address or DEFAULT_ADDRESS
    url = (url if "://" in url else f"http://{url}").rstrip("/")
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid:
        raise UserError(url, f"a job server's address is a URL such as {DEFAULT_ADDRESS}")
    return url
