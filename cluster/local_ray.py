"""Start Ray on this machine, within the memory and the open files that this process may use."""

import logging
import os
import secrets

import ray

from cluster import loopback, machine
from pipeline.errors import UserError, one_line

RAY_BYTES = 600_000_000
"""Memory of Ray's own processes, of the actors of Ray Data, and of what the driver loads."""
_LEAST_BYTES = 300_000_000
"""Memory of the smallest worker."""
_FILES, _FILES_PER_CPU, _MAX_FILES = 128, 8, 65_536
"""Files and sockets that one of Ray's processes opens: at least, for each CPU, and at most."""

_TOKEN = secrets.token_hex(32)


def variables() -> dict[str, str]:
    """Environment of a local Ray's processes, where the user has not set these variables."""
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    disabled = os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled"
    return {
        **loopback.VARIABLES,
        **({} if given or disabled else {"RAY_AUTH_TOKEN": _TOKEN}),
        # An idle worker for each CPU takes memory, and saves no time.
        "RAY_prestart_worker_first_driver": "0",
        # Workers have the same claim to the CPUs as other programs, which else get thirty times as
        # much: Ray gives way to them by 15.
        "RAY_worker_niceness": "0",
        # A watch for nodes that are about to be shut down: this one ends with this process.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # How often Ray Train looks whether the workers have ended, in place of 2 s; the end of the
        # step waits for it.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # Tasks that Ray itself kills for lack of memory; otherwise it repeats them for ever.
        "RAY_task_oom_retries": "3",
    }


def worker_bytes(limit_bytes: int | None = None) -> int:
    """Memory that Ray's workers may use together on this machine.

    Args:
        limit_bytes: what a batch system has given to the job here; None: all of the machine.
    """
    free_bytes = machine.memory().free_bytes
    return max(0, min(free_bytes, limit_bytes or free_bytes) - RAY_BYTES)


def start(num_cpus: int | None) -> None:
    """Start Ray and connect to it.

    The resource `memory` of its node is what its workers may use together.

    Args:
        num_cpus: how many CPUs workers use; None: all of the machine.

    Raises:
        UserError: `num_cpus` is invalid, the machine or its container has too little memory or
            allows too few open files, or Ray cannot start.
    """
    if num_cpus is not None and num_cpus < 1:
        raise UserError("--num-cpus", f"must be at least 1, got {num_cpus}")
    memory = machine.memory()
    if memory.free_bytes < RAY_BYTES + _LEAST_BYTES:
        raise UserError(
            "",
            f"Ray needs {(RAY_BYTES + _LEAST_BYTES) / 1e9:.2f} GB of memory with one worker, and "
            f"{memory.free_bytes / 1e9:.2f} GB are free of the {memory.limit_bytes / 1e9:.2f} GB "
            "that this machine or its container allows",
            "free or add memory",
        )
    _allow_open_files(num_cpus or os.cpu_count() or 1)
    try:
        with loopback.starting_on_loopback():
            ray.init(
                address="local",
                num_cpus=num_cpus,
                _memory=memory.free_bytes - RAY_BYTES,
                # It would cost about 1 GB of memory.
                include_dashboard=False,
                logging_level=logging.WARNING,
            )
    except Exception as error:
        # Ray has no error type for this; the cause is the machine.
        folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
        if "AF_UNIX" in str(error):
            reason = "path too long for Ray's sockets; set RAY_TMPDIR to a short one, such as /tmp"
        else:
            text = one_line(error).rstrip(".")
            reason = f"Ray cannot start ({text}); see ray/session_latest/logs in this folder"
            if "timed out" in text:
                reason += "; on a busy machine, set RAY_raylet_start_wait_time_s=120"
        raise UserError(folder, reason) from error


def _allow_open_files(num_cpus: int) -> None:
    needed = _FILES + _FILES_PER_CPU * num_cpus
    allowed = machine.raise_open_files(_MAX_FILES)
    if allowed < needed:
        raise UserError(
            "",
            f"this process may open {allowed} files, and Ray with {num_cpus} CPUs needs {needed}",
            f"raise the limit (`ulimit -n {_MAX_FILES}`), or lower --num-cpus",
        )
