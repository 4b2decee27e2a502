"""Steps of `ray_job.py` run as a user runs them: as processes that can be stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray_job

PROJECT = Path(ray_job.__file__).parent


@contextmanager
def started(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """`ray_job.py` in a process (and process group) of its own, which ends with the block."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    # Workers that may not keep compiled modules compile all of them at every start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with subprocess.Popen(
        [sys.executable, str(PROJECT / "ray_job.py"), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as step:
        try:
            yield step
        finally:
            with suppress(ProcessLookupError):
                os.killpg(step.pid, signal.SIGKILL)
