"""Local files that killed processes left unfinished beside their targets.

A file is written under another name, `.NAME.PID.RANDOM`, and locked for as long as its process
lives. So a file of this name that nobody has locked is abandoned, unless its file system has no
locks or another process of this machine has its number: then it stays.
"""

import fcntl
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

UNFINISHED = re.compile(r"\..+\.(\d+)\.[0-9a-f]{8}")
"""Names of local files that are being written."""


def lock_unfinished(file: int) -> int:
    """Lock a new file; returns the descriptor that holds the lock, for the caller to close."""
    held = os.dup(file)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return held


@lru_cache(maxsize=1024)
def remove_abandoned(folder: str) -> None:
    """Delete the abandoned files of a folder, once in the life of this process."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(".")]
    for name in names:
        match = UNFINISHED.fullmatch(name)
        if match and not _is_alive(int(match[1])):
            _remove_unlocked(Path(folder, name))


def _is_alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def _remove_unlocked(path: Path) -> None:
    # Fails if it is locked, there are no locks here, or it is not ours to delete.
    with suppress(OSError):
        # Without O_NONBLOCK the opening of a pipe waits for a writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        finally:
            os.close(file)
