"""What a lost node looks like: one line, without what Ray writes about it."""

import logging
import re
import threading
from typing import Any

import pytest
import ray

from cluster import lost_nodes
from cluster.ray_noise import _SKIPPED_LINES
from tests.support.errors import assert_names

# As Ray 2.60 sent them to the driver for a raylet that was stopped until it was taken for dead.
RAYLET = "/opt/ray/core/src/ray/raylet/raylet"
LINES = [
    "The node with node id: a435 and address: 10.0.0.7 has been marked dead "
    "because the detector has missed too many heartbeats from it. This can happen when a \t(1) "
    "raylet crashes unexpectedly (OOM, etc.) \n\t(2) raylet has lagging heartbeats",
    "Raylet is terminated. Termination is unexpected. Possible reasons include: (1) SIGKILL\n"
    "    [state-dump] DebugString() time ms: 0",
    "[2026-11-28 23:38:36,297 C 22609 22609] (raylet) node_manager.cc:971: Exiting",
    "*** StackTrace Information ***",
    "",
    f"{RAYLET}(+0xff770a) [0x564a293b170a] ray::operator<<()",
    "/lib/x86_64-linux-gnu/libc.so.6(__libc_start_main+0x85) [0x7fc24d845305] __libc_start_main",
    f"{RAYLET}(+0x263cb7) [0x564a2861dcb7]",
    "*** SIGTERM received at time=1795908716 on cpu 1 ***",
    "PC: @     0x7fc24d8ba56e  (unknown)  epoll_wait",
    "    @     0x7fc24d8ba56e       3984  absl::lts_20230802::WriteFailureInfo()",
    # Of a worker that crashed as its node was busy.
    "[mutex.cc : 1954] RAW: Check (v & (kMuWriter | kMuReader)) failed: Lock: Mutex corrupt",
    "Fatal Python error: Aborted",
    "Thread 0x00007fc24d8ba56e (most recent call first):",
    '  File "/opt/python/lib/threading.py", line 320 in wait',
    "Extension modules: msgpack._cmsgpack, psutil._psutil_linux (total: 2)",
]


@pytest.mark.parametrize("line", LINES)
def test_lines_of_ray_are_skipped(line: str) -> None:
    assert re.search(_SKIPPED_LINES, line)


@pytest.mark.parametrize(
    "line",
    [
        "warning: 2 of the workers were lost with node 10.0.0.7; restarting from step 120",
        "Traceback (most recent call last):",
        '  File "/opt/program/loop.py", line 320, in train',
        "[2026-11-28 23:38:36,297] what a library prints",
    ],
)
def test_other_lines_are_not(line: str) -> None:
    assert not re.search(_SKIPPED_LINES, line)


def node(address: str, *, alive: bool, reason: int = 0) -> dict[str, Any]:
    return {"NodeID": address, "NodeManagerAddress": address, "Alive": alive, "DeathReason": reason}


def test_each_lost_node_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not those that were lost before, and not those that a drain or the autoscaler ended."""
    before = [node("10.0.0.5", alive=False, reason=2), node("10.0.0.7", alive=True)]
    after = [before[0], node("10.0.0.7", alive=False, reason=2), node("10.0.0.8", alive=False)]
    num_looks, is_enough = 0, threading.Event()

    def nodes() -> list[dict[str, Any]]:
        nonlocal num_looks
        num_looks += 1
        if num_looks > 3:
            is_enough.set()
        return before if num_looks == 1 else after

    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(lost_nodes, "_LOOK_EVERY_S", 0.01)
    with caplog.at_level(logging.WARNING), lost_nodes.telling_of_lost_nodes():
        assert is_enough.wait(60)
    [message] = [record.getMessage() for record in caplog.records]
    assert_names(message, "10.0.0.7")
