"""What a process may use of its machine, from files as the kernel shows them."""

import resource
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster import local_ray, machine
from tests.support.errors import refused

GB = 1_000_000_000
UNLIMITED_V1 = 9_223_372_036_854_771_712
MEMINFO = "MemTotal: 16000000 kB\nMemFree: 1000000 kB\nMemAvailable: 8000000 kB\n"
TOTAL, AVAILABLE = 16_000_000 * 1024, 8_000_000 * 1024


def write(root: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content).strip() + "\n")


def make_root(root: Path, cgroup: str, mount: str) -> None:
    write(root, {"proc/meminfo": MEMINFO, "proc/vmstat": "oom_kill 7"})
    write(root, {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mount})


def write_v1(root: Path, group: str, limit: int, used: int, cache: int = 0, kills: int = 0) -> None:
    stat = f"cache 1\ninactive_file 5\nactive_file 5\ntotal_inactive_file {cache}\n"
    folder = f"sys/fs/cgroup/memory/{group}"
    files = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": f"{stat}total_active_file 0"}
    write(root, {f"{folder}/memory.{name}": content for name, content in files.items()})
    control = f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}"
    write(root, {f"{folder}/memory.oom_control": control})


def write_v2(root: Path, group: str, limit: object, used: int, cache: int = 0) -> None:
    folder = f"sys/fs/cgroup/{group}"
    stat = f"anon 5\ninactive_file {cache}\nactive_file 0"
    files = {"max": limit, "current": used, "stat": stat, "events": "low 0\noom 1\noom_kill 3"}
    write(root, {f"{folder}/memory.{name}": content for name, content in files.items()})


MOUNT_V1 = "36 30 0:31 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
MOUNT_V2 = "30 25 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw"


def test_machine_without_limits(tmp_path: Path) -> None:
    make_root(tmp_path, "0::/user.slice", MOUNT_V2.format(top="/"))
    write_v2(tmp_path, "user.slice", "max", 5 * GB)
    assert machine.memory(tmp_path) == machine.Memory(limit_bytes=TOTAL, free_bytes=AVAILABLE)


def test_least_limit_of_the_groups_counts_without_the_cache_of_files(tmp_path: Path) -> None:
    make_root(tmp_path, "4:memory:/a/b\n3:cpu,cpuacct:/c", MOUNT_V1.format(top="/"))
    write_v1(tmp_path, "", UNLIMITED_V1, 9 * GB)
    write_v1(tmp_path, "a", 4 * GB, 3 * GB, cache=GB, kills=9)
    write_v1(tmp_path, "a/b", 6 * GB, GB, kills=2)
    write_v1(tmp_path, "c", GB, 0)
    assert machine.memory(tmp_path) == machine.Memory(limit_bytes=4 * GB, free_bytes=2 * GB)
    assert machine.memory_kills(tmp_path) == 2


def test_parent_of_version_2_may_be_nearly_full(tmp_path: Path) -> None:
    make_root(tmp_path, "0::/pod/container", MOUNT_V2.format(top="/"))
    write_v2(tmp_path, "pod", 8 * GB, 7 * GB + 1)
    write_v2(tmp_path, "pod/container", 2 * GB, GB // 2, cache=GB // 4)
    assert machine.memory(tmp_path) == machine.Memory(limit_bytes=2 * GB, free_bytes=GB - 1)
    assert machine.memory_kills(tmp_path) == 3


@pytest.mark.parametrize("top", ["/docker/1a2b", "/"])
def test_container_sees_its_own_group_as_the_root(tmp_path: Path, top: str) -> None:
    """Without a namespace, its path is that of the host, and so is the root of what is mounted."""
    make_root(tmp_path, f"4:memory:{top}", MOUNT_V1.format(top=top))
    write_v1(tmp_path, "", 3 * GB, GB)
    assert machine.memory(tmp_path) == machine.Memory(limit_bytes=3 * GB, free_bytes=2 * GB)


def test_version_1_with_an_empty_tree_of_version_2(tmp_path: Path) -> None:
    mount = MOUNT_V2.format(top="/").replace("cgroup rw,nosuid", "cgroup/unified rw")
    make_root(tmp_path, "4:memory:/a\n0::/", f"{mount}\n{MOUNT_V1.format(top='/')}")
    (tmp_path / "sys/fs/cgroup/unified").mkdir(parents=True)
    write_v1(tmp_path, "a", 2 * GB, 3 * GB)
    assert machine.memory(tmp_path) == machine.Memory(limit_bytes=2 * GB, free_bytes=0)


def test_this_machine_has_memory() -> None:
    memory = machine.memory()
    assert 0 < memory.free_bytes <= memory.limit_bytes
    assert machine.memory_kills() >= 0


def test_open_files_are_raised_as_far_as_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 200), hard))
        assert machine.raise_open_files(300) == 300
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (300, hard)
        assert machine.raise_open_files(250) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_little_memory_is_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = machine.Memory(limit_bytes=1_200_000_000, free_bytes=850_000_000)
    monkeypatch.setattr(machine, "memory", lambda: memory)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray starts"))
    with refused("", "0.90 GB", "0.85 GB", "1.20 GB", remedy=True):
        local_ray.start(None)


def test_too_few_open_files_are_refused_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "raise_open_files", lambda wanted: 64)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray starts"))
    with refused("", "64", "144", "2 CPUs", remedy="ulimit -n"):
        local_ray.start(2)


def test_a_busy_machine_is_told_how_to_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:
        raise Exception("The current node timed out during startup. It could be overloaded.")

    monkeypatch.setenv("RAY_TMPDIR", "/short")
    monkeypatch.setattr("ray.init", time_out)
    with refused("/short", "timed out", "session_latest/logs", "RAY_raylet_start_wait_time_s=120"):
        local_ray.start(2)
