"""Control groups (cgroups) that limit the memory of a step."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSIONS = (
    ("memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("", "/sys/fs/cgroup", "memory.max"),
)
"""Version 1 and 2: the controllers in /proc/self/cgroup, where they are mounted, and the limit."""


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """A group inside this process's own; the test is skipped where none can be made.

    Yields its folder: a process joins by writing its id into `cgroup.procs` there.
    """
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = dict(line.split(":", 2)[1:] for line in lines)
    for controllers, root, limit in VERSIONS:
        parent = Path(f"{root}{own.get(controllers, '/')}")
        if (parent / limit).exists():
            folder = parent / f"ast-ray-test-{os.getpid()}"
            try:
                folder.mkdir(exist_ok=True)
                (folder / limit).write_text(str(limit_bytes))
            except OSError as error:
                pytest.skip(f"no control group can be made here ({error})")
            try:
                yield folder
            finally:
                _remove(folder)
            return
    pytest.skip("no control groups for memory here")


def _remove(folder: Path) -> None:
    """Processes of the group end a little later than their step."""
    deadline = time.monotonic() + 60
    while (folder / "cgroup.procs").read_text():
        assert time.monotonic() < deadline, "processes outlive their step by 60 s"
        time.sleep(0.1)
    folder.rmdir()
