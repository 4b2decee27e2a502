"""Run `ray_job.py` as a job of a cluster, and follow and stop such jobs, over HTTP.

In: the command line after `ray_job.py`, the program's folder, variables for the job. Steps: upload
the program (`upload`) to the cluster's job server (Ray's dashboard, port 8265), start
`python ray_job.py ...` there, print its log as it grows. Out: the job's exit status.

A job belongs to the cluster: it keeps running when the connection drops (the log resumes where it
stopped, without repeated or lost lines) and when following is interrupted; only `stop` ends it. No
state is kept on this machine: the job's id is enough to return to it.
"""

import asyncio
import logging
import re
import shlex
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import aiohttp
from ray.job_submission import JobStatus

from cluster.job_server import JobServer, UnreachableError, connect, reason
from cluster.own_files import OwnFiles
from cluster.packages import NO_PACKAGES, Packages
from cluster.program import program_name
from cluster.upload import PROGRAM, job_folder, path_in_job
from pipeline.errors import INTERRUPTED, UserError

_logger = logging.getLogger(__name__)

PLAIN_VARIABLES = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_SKIP_SIGNATURE", "AWS_REQUEST_PAYER",
    "GOOGLE_BASE_URL", "GOOGLE_SKIP_SIGNATURE",
    "AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ENDPOINT", "AZURE_SKIP_SIGNATURE",
)  # fmt: skip
"""Sent with every job if they are set: they name the storage, but are no secrets."""

CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Sent only on request: everyone with access to the job server can read a job's variables."""

LOST_S = 120.0
"""Following a job ends after the server has not responded for this long."""
SILENCE_S = 300.0
"""A log that is silent for this long is reconnected, since the connection may be dead."""
STOP_S = 30.0
"""Longest wait for a stopped job to end; Ray kills it after 3 s."""
MAX_PAUSE_S = 30.0
"""Longest pause between two attempts to follow a log."""

_PENDING_REASON = (
    "still waits for CPUs; it stops as soon as it gets them, or 15 minutes after its submission"
)


def submit(
    arguments: Sequence[str],
    *,
    working_dir: str,
    recipe: str | None = None,
    own: OwnFiles | None = None,
    packages: Packages = NO_PACKAGES,
    image: str | None = None,
    address: str | None = None,
    environment: Mapping[str, str] | None = None,
    submission_id: str | None = None,
    wait: bool = True,
) -> int:
    """Start `python ray_job.py <arguments>` on a cluster.

    With `wait` the job's log goes to stdout and everything else to stderr; without it, stdout has
    only the job's id. Ctrl-C while following leaves the job running and says how to return to it.

    Args:
        arguments: The command line after `ray_job.py`, one item per argument.
        working_dir: The folder that holds `ray_job.py`; the program's files in it are uploaded.
        recipe: The argument that is the path of a local recipe: the file is uploaded, and the job
            gets its path on the cluster.
        own: Files of the user for the job's working folder.
        packages: Packages to install for the job.
        image: Image of a container to run the job in, which has the program: nothing is uploaded.
        address: URL of the job server; see `job_server.connect` for the default.
        environment: Variables for the job, as `forwarded_environment` gives them.
        submission_id: Name of the job; a name that was used before is refused, so that a repeated
            submission does not start the same work twice. None: Ray chooses.
        wait: Whether to follow the log until the job ends.

    Returns:
        The job's exit status; 1 if it failed without one, 130 if it was stopped or following was
        interrupted; 0 without `wait`.

    Raises:
        UserError: the server cannot be reached or refuses, the id was used before, files cannot be
            uploaded, or they are to be and there is an image.
    """
    if not arguments:
        raise UserError("submit", "give the command to run after --, such as: submit -- train ...")
    checked_id = None if submission_id is None else _checked_id(submission_id)
    variables = {"env_vars": dict(environment or {})}
    if image is not None:
        _check_alone(image, recipe, own, packages)
        server = connect(address)
        entrypoint = shlex.join(["ast-ray", *arguments])
        runtime_env = {"image_uri": image, **variables}
        job_id = _start(
            server, entrypoint=entrypoint, runtime_env=runtime_env, submission_id=checked_id
        )
    else:
        root = Path(working_dir)
        if recipe is not None:
            arguments = _replaced(arguments, recipe, str(path_in_job(Path(recipe), root)))
        with job_folder(root, None if recipe is None else Path(recipe), own, packages) as folder:
            server = connect(address)
            job_id = _start(
                server,
                entrypoint=shlex.join(["python", PROGRAM, *arguments]),
                runtime_env={"working_dir": str(folder), **packages.runtime_env(), **variables},
                submission_id=checked_id,
            )
    if not wait:
        print(job_id, flush=True)
        _logger.info("%s", _how_to_return(server, job_id))
        return 0
    _logger.info("job %s at %s", job_id, server.get_address())
    return _follow_to_end(server, job_id)


def forwarded_environment(
    items: Sequence[str], *, credentials: bool, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables sent with a job: `PLAIN_VARIABLES` that are set, and those requested.

    Args:
        items: `NAME` to send a variable with its value here, or `NAME=VALUE`.
        credentials: Whether to send `CREDENTIALS` too. Off by default: nodes normally have their
            own role, and everyone with access to the job server can read a job's variables.
        environ: The variables here, normally `os.environ`.

    Raises:
        UserError: an item has neither form or names a variable that is not set here, or there are
            no credentials to send.
    """
    names = [*PLAIN_VARIABLES, *(CREDENTIALS if credentials else ())]
    variables = {name: environ[name] for name in names if environ.get(name)}
    missing = [name for name in CREDENTIALS[:2] if name not in variables]
    if credentials and missing:
        raise UserError("--forward-credentials", f"{' and '.join(missing)} not set here")
    for item in items:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError("--env", f"must be NAME or NAME=VALUE, got {name!r}")
        if not equals and name not in environ:
            raise UserError("--env", f"{name} is not set here", f"give {name}=VALUE")
        variables[name] = value if equals else environ[name]
    return variables


def print_logs(job_id: str, *, address: str | None = None, follow: bool = False) -> int:
    """Print the log of a job to stdout.

    Returns:
        0; with `follow`, which prints until the job ends, the same as `submit`.

    Raises:
        UserError: the server cannot be reached or refuses, or has no such job.
    """
    job_id = _checked_id(job_id)
    server = connect(address)
    if follow:
        server.get_job_info(job_id)
        return _follow_to_end(server, job_id)
    print(server.get_job_logs(job_id), end="", flush=True)
    return 0


def stop(job_id: str, *, address: str | None = None) -> None:
    """Stop a job and wait until it has ended; a job that has already ended stays as it is.

    Raises:
        UserError: the server cannot be reached or refuses, has no such job, or the job does not
            end.
    """
    job_id = _checked_id(job_id)
    server = connect(address)
    stopping = server.stop_job(job_id)
    deadline = time.monotonic() + STOP_S
    while not (details := server.get_job_info(job_id)).status.is_terminal():
        if time.monotonic() > deadline:
            fault = _PENDING_REASON if details.status == JobStatus.PENDING else "still running"
            raise UserError(job_id, fault)
        time.sleep(0.5)
    before = "" if stopping else "had already ended, "
    _logger.info("job %s: %s%s", job_id, before, details.status.value)


class _Log:
    """Prints a job's log to stdout, and counts how much of it is printed."""

    def __init__(self, server: JobServer, job_id: str) -> None:
        self._server = server
        self._job_id = job_id
        self.num_printed = 0
        """Characters from the start of the log."""

    async def tail(self) -> bool:
        """Print the log as it grows; the server sends it from its start at every connection.

        Returns:
            Whether the server ended the stream without an error.
        """
        start = 0
        stream = cast(AsyncGenerator[str, None], self._server.tail_job_logs(self._job_id))
        try:
            while True:
                text = await asyncio.wait_for(anext(stream), SILENCE_S)
                self._print(start, text)
                start += len(text)
        except StopAsyncIteration:
            return True
        except (OSError, RuntimeError, aiohttp.ClientError):
            return False
        finally:
            await stream.aclose()

    def catch_up(self) -> bool:
        """Print the rest of the log so far. Returns whether it could be read."""
        try:
            self._print(0, self._server.get_job_logs(self._job_id))
        except UserError:
            return False
        return True

    def _print(self, start: int, text: str) -> None:
        """Print what is new in a text that begins after `start` characters of the log."""
        new = text[max(0, self.num_printed - start) :]
        print(new, end="", flush=True)
        self.num_printed += len(new)


def _follow_to_end(server: JobServer, job_id: str) -> int:
    try:
        details = _follow(server, job_id)
    except KeyboardInterrupt:
        _logger.info("job %s keeps running; %s", job_id, _how_to_return(server, job_id))
        return INTERRUPTED
    status, code = details.status, details.driver_exit_code
    _logger.info("job %s: %s%s", job_id, status.value, f", exit status {code}" if code else "")
    if status == JobStatus.SUCCEEDED:
        return 0
    if status == JobStatus.STOPPED:
        return INTERRUPTED
    if code is None:
        # It never ran: the reason is not in the log.
        _logger.warning("job %s: %s", job_id, _in_one_line(details.message or "never ran"))
        _logger.debug("%s", details.message)
    # A negative code is the number of the signal that ended the shell.
    return 128 - code if code and code < 0 else code or 1


def _in_one_line(message: str) -> str:
    """Why a job never ran; of a traceback what Ray says first, and pip or Python last."""
    lines = [line.strip() for line in message.splitlines() if re.search(r"\w", line)]
    if "Traceback (most recent call last)" not in message:
        return " ".join(lines)
    of_pip = [line for line in lines if line.startswith("ERROR: ")]
    return f"{lines[0]} {(of_pip or lines)[-1]}"


def _follow(server: JobServer, job_id: str) -> Any:
    """Print the log until the job ends, over as many connections as it takes."""
    log = _Log(server, job_id)
    pause_s, answered = 1.0, time.monotonic()
    while True:
        num_printed = log.num_printed
        closed = asyncio.run(log.tail())
        if log.num_printed > num_printed:
            pause_s, answered = 1.0, time.monotonic()
        try:
            details = server.get_job_info(job_id)
            answered = time.monotonic()
        except UnreachableError as error:
            if time.monotonic() - answered > LOST_S:
                raise UserError(
                    error.where, error.what, f"{error.remedy}; job {job_id} may still be running"
                ) from error
        else:
            # The stream also ends without an error if the node with the log is lost.
            complete = log.catch_up() or closed
            if details.status.is_terminal():
                if not complete:
                    _logger.warning("job %s: the end of its log could not be read", job_id)
                return details
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


def _check_alone(image: str, recipe: str | None, own: OwnFiles | None, packages: Packages) -> None:
    """Ray gives a job of an image neither files nor packages."""
    given = [recipe, own and "--working-dir", packages.lines and "--pip"]
    if names := [str(name) for name in given if name]:
        raise UserError(
            "--image",
            f"a job in {image} can be sent neither files nor packages: {', '.join(names)}",
            "build them into the image, or leave --image out",
        )


def _start(server: JobServer, **request: Any) -> str:
    try:
        return str(server.submit_job(**request))
    except (ValueError, OSError) as error:
        address = server.get_address()
        raise UserError(address, f"cannot submit the job ({reason(error)})") from error


def _replaced(arguments: Sequence[str], old: str, new: str) -> list[str]:
    """The arguments with a value replaced, also where it stands in `--option=value`."""
    changed = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        is_joined = bool(equals) and option.startswith("--") and value == old
        changed.append(new if argument == old else f"{option}={new}" if is_joined else argument)
    return changed


def _checked_id(job_id: str) -> str:
    # It becomes part of a URL and of a file name on the cluster.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", job_id):
        raise UserError(
            f"{job_id!r}",
            "a job's id may hold only letters, digits and _.-, and starts with a letter or digit",
        )
    return job_id


def _how_to_return(server: JobServer, job_id: str) -> str:
    name, job = program_name(), f"{job_id} --address {server.get_address()}"
    return f"to follow it: {name} logs --follow {job}; to stop it: {name} stop {job}"
