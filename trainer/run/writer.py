"""Who writes into a run folder: one process at a time, on a local disk and on S3."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline import storage
from pipeline.errors import PassingError, UserError

_logger = logging.getLogger(__name__)


@contextmanager
def alone_in(run_path: str) -> Iterator[None]:
    """Keep other processes of this machine from training in a local run folder at the same time.

    The lock ends with the process that holds it. There is none for S3.

    Raises:
        UserError: another process is at work there, or the folder cannot be written.
    """
    if storage.is_remote(run_path):
        yield
        return
    storage.make_folder(run_path)
    path = Path(run_path, ".lock")
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(path, blocking=False, fallback_to_soft=False))
        except Timeout as error:
            raise UserError(
                run_path, "another process trains there", "wait for it, or give another --out"
            ) from error
        except OSError as error:
            # Buckets that are mounted as a folder often have no locks, or open no file for reading
            # and writing at once, as filelock does; what cannot be written at all is an error.
            _check_writable(path)
            _logger.warning("%s: not locked (%s)", run_path, error.strerror)
        yield


def _check_writable(path: Path) -> None:
    try:
        path.open("w").close()
    except OSError as error:
        raise UserError(str(path.parent), f"cannot be written ({error.strerror})") from error


def take_over(run_path: str) -> str:
    """Make this process the one that writes into the run folder; returns what it is known by.

    A lock cannot do it on S3, where one of a killed process would stay.
    """
    token = secrets.token_hex(8)
    writer = _Writer(token=token, host=socket.gethostname(), process=os.getpid())
    storage.write_json(storage.join(run_path, "writer.json"), asdict(writer))
    return token


@dataclass(frozen=True, kw_only=True, slots=True)
class _Writer:
    """`writer.json`: the process that writes into the run folder."""

    token: str
    host: str
    process: int


def check_writer(run_path: str, token: str) -> None:
    """Refuse to write once another process has taken the run folder over.

    Raises:
        UserError: another has, and goes on with the run.
    """
    try:
        data = storage.read_bytes(storage.join(run_path, "writer.json"))
        writer = storage.parse_document(data, _Writer)
    except (FileNotFoundError, storage.DocumentError):
        return  # gone or damaged: nobody says that it is another
    if writer.token != token:
        raise UserError(
            run_path,
            f"another `train` has begun there (process {writer.process} on {writer.host}) and goes "
            "on from the last checkpoint",
            "this one ends",
        )


@contextmanager
def writing(run_path: str, token: str) -> Iterator[None]:
    """Within it files of the run are written.

    Raises:
        UserError: another process has taken the run folder over, before or in the meantime: it
            deletes what it finds unfinished, so that the writing fails.
    """
    check_writer(run_path, token)
    try:
        yield
    except UserError:
        with suppress(PassingError):
            check_writer(run_path, token)
        raise


def remove_unfinished(run_path: str) -> None:
    """Delete what a killed process was writing to a local disk: checkpoints of a GB or more."""
    if not storage.is_remote(run_path):
        for pattern in (".*", "checkpoints/.*", "epochs/.*"):
            for path in Path(run_path).glob(pattern):
                if storage.UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
