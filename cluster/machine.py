"""What this process may use of its machine: memory, and open files.

The memory of a container or a batch job is that of its control groups (cgroups, version 1 or 2),
which may be far less than the machine's; Ray looks at the root of the tree alone.
"""

import resource
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USES = ("memory.current", "memory.usage_in_bytes")
_FILE_CACHES = ({"inactive_file", "active_file"}, {"total_inactive_file", "total_active_file"})
"""Lines of `memory.stat`: pages of files, which the kernel drops when memory runs short."""
_KILLS = ("memory.events", "memory.oom_control")
"""Each pair and triple: version 2, version 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory that this process and others may use."""

    limit_bytes: int
    """The least of the machine's and of the control groups' limits."""
    free_bytes: int
    """What is left of it, or of any other of these limits, if that is less."""


def memory(root: Path = Path("/")) -> Memory:
    """The memory there is, by `/proc` and the control groups, which are looked for below `root`."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    machine = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    limit, free = machine["MemTotal"], machine["MemAvailable"]
    for folder in _memory_groups(root):
        with suppress(OSError, ValueError, StopIteration):
            group_limit = int(_first(folder, _LIMITS))  # "max" without a limit
            used = int(_first(folder, _USES)) - _file_cache(folder)
            limit, free = min(limit, group_limit), min(free, group_limit - used)
    return Memory(limit_bytes=limit, free_bytes=max(0, free))


def memory_kills(root: Path = Path("/")) -> int:
    """How many processes of this control group the kernel has killed for lack of memory so far."""
    for folder in _memory_groups(root):
        with suppress(OSError, StopIteration):
            counts = dict(line.split() for line in _first(folder, _KILLS).splitlines())
            if "oom_kill" in counts:
                return int(counts["oom_kill"])
    # In the root group of version 2: of the whole machine.
    counts = dict(line.split() for line in (root / "proc/vmstat").read_text().splitlines())
    return int(counts.get("oom_kill", 0))


def raise_open_files(wanted: int) -> int:
    """Let this process and its children open up to `wanted` files, or as many as is allowed.

    Returns:
        How many they may open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    no_limit = resource.RLIM_INFINITY
    if soft == no_limit:
        return wanted
    reachable = wanted if hard == no_limit else min(hard, wanted)
    if soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
    return max(soft, reachable)


def _memory_groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups for memory, from its own up to the outermost."""
    paths = {}
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            paths["cgroup" if controllers else "cgroup2"] = PurePosixPath(path)
    for line in (root / "proc/self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        system, _, options = kind.split(" ", 2)
        if system in paths and (system == "cgroup2" or "memory" in options.split(",")):
            top, point = map(PurePosixPath, mount.split()[3:5])
            # In a container, the mounted part may be the container's own group.
            own = paths[system]
            inside = own.relative_to(top).parts if own.is_relative_to(top) else ()
            mounted = root / point.relative_to("/")
            for depth in range(len(inside), -1, -1):
                yield mounted.joinpath(*inside[:depth])


def _first(folder: Path, names: tuple[str, ...]) -> str:
    return next(path for name in names if (path := folder / name).exists()).read_text().strip()


def _file_cache(folder: Path) -> int:
    lines = (folder / "memory.stat").read_text().splitlines()
    counts = {name: int(value) for name, value in (line.split() for line in lines)}
    # Version 1 counts the groups inside under separate names.
    v2, v1 = _FILE_CACHES
    return sum(counts[name] for name in (v1 if v1 <= counts.keys() else v2))
