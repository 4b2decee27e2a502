"""One process at a time writes into a run folder, on a local disk or on S3."""

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
    """Lock a local run folder against other processes of this machine.

    The lock ends with its process. Folders on S3 are not locked.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written.
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
            # A bucket mounted as a folder often has no locks, or opens no file for reading and
            # writing at once, as filelock does. A folder that cannot be written is an error.
            _check_writable(path)
            _logger.warning("%s: not locked (%s)", run_path, error.strerror)
        yield


def check_can_write(run_path: str) -> None:
    """Write an empty file into the run folder, local or in a bucket, and remove it.

    Raises:
        UserError: the folder cannot be written.
    """
    probe = storage.join(run_path, f".probe.{secrets.token_hex(8)}")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except PassingError:
        raise
    except UserError as error:
        raise UserError(run_path, error.what, error.remedy) from error


def _check_writable(path: Path) -> None:
    try:
        path.open("w").close()
    except OSError as error:
        raise UserError(str(path.parent), f"cannot be written ({error.strerror})") from error


def take_over(run_path: str) -> str:
    """Make this process the writer of the run folder; returns its token.

    On S3 this replaces a lock, which would outlive a killed process.
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
        UserError: names the other process.
    """
    try:
        data = storage.read_bytes(storage.join(run_path, "writer.json"))
        writer = storage.parse_document(data, _Writer)
    except (FileNotFoundError, storage.DocumentError):
        return  # missing or damaged: no sign of another process
    if writer.token != token:
        raise UserError(
            run_path,
            f"another `train` (process {writer.process} on {writer.host}) has taken the run over "
            "and resumes it from the last checkpoint",
            "this one stops",
        )


@contextmanager
def writing(run_path: str, token: str) -> Iterator[None]:
    """Guard a block that writes files of the run.

    Raises:
        UserError: another process has taken the run folder over, before the block or during it; it
            deletes unfinished files, so that writing them fails.
    """
    check_writer(run_path, token)
    try:
        yield
    except PassingError:
        raise  # asking who writes there would wait for the same storage once more
    except UserError:
        with suppress(PassingError):
            check_writer(run_path, token)
        raise


def remove_unfinished(run_path: str) -> None:
    """Delete files that a killed process left unfinished on a local disk: a GB or more each."""
    if not storage.is_remote(run_path):
        for pattern in (".*", "checkpoints/.*", "epochs/.*"):
            for path in Path(run_path).glob(pattern):
                if storage.UNFINISHED.fullmatch(path.name):
                    path.unlink(missing_ok=True)
