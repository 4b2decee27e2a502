"""Steps of `ray_job.py` as a user runs them: as processes that can be stopped."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray_job
from trainer.checkpoints.paths import checkpoint_paths

PROJECT = Path(ray_job.__file__).parent
SLOW = "note: still waiting for the first step"
"""Said after a minute, which the start of workers takes on a busy machine."""


def ray_folder() -> tempfile.TemporaryDirectory[str]:
    """A short folder for Ray's temporary files, as paths of sockets are limited in length."""
    return tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)


@contextmanager
def started(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """`ray_job.py` in a new process, which ends with the block, as do all its children."""
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
            # Ray's workers are in separate groups and end once their Ray is gone.
            deadline = time.monotonic() + 60
            while is_session_alive(step.pid):
                assert time.monotonic() < deadline, "processes outlive their step by 60 s"
                time.sleep(0.05)


def own_lines(stderr: str) -> list[str]:
    """The command's own notes and errors; on a busy machine Ray may print some more lines."""
    own = stderr.splitlines()
    unwanted = (
        "Traceback",
        "PreemptionWatcher",
    )
    # A worker may report its own faults, but not repeat the driver's or log what libraries do.
    repeated = re.compile(r"\(RayTrainWorker pid=\d+\)\S* (note: |.*\bINFO\b)")
    assert not [line for line in own if repeated.search(line)], stderr
    assert not [line for line in own if any(words in line for words in unwanted)], stderr
    starts = ("note: ", "warning: ", "ray_job.py: error: ")
    return [line for line in own if line.startswith(starts) and not line.startswith(SLOW)]


def wait_for_step(process: "subprocess.Popen[str]", run: Path, step: int) -> None:
    """Wait for a run's checkpoint of at least this step."""
    deadline = time.monotonic() + 240
    while not any(int(path[-11:-3]) >= step for path in checkpoint_paths(str(run))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"no step {step} within 240 s"
        time.sleep(0.02)


def is_session_alive(session: int) -> bool:
    """Whether any of its processes still runs; those of `started` have their own session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # After the name: state, parent, group, session; zombies may not be reaped.
            state, _, _, session_id, *_ = path.read_text().rpartition(")")[2].split()
            if int(session_id) == session and state not in "ZX":
                return True
    return False


def processes_in_session(session: int) -> list[int]:
    """Process ids of a session, such as of a node that `ray start --block` leads."""
    return _processes_with(3, session)


def children_of(process: int) -> list[int]:
    """Process ids of those that it has started and that still run."""
    return _processes_with(1, process)


def _processes_with(field: int, value: int) -> list[int]:
    """Those with this value in a field that follows the name in their `/proc/*/stat`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[field]) == value:
                found.append(int(stat.parent.name))
    return found
