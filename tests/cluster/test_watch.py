"""Which ends of Ray's processes end a step; the processes are stand-ins with the same names."""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.signals import one_interrupt
from cluster.watch import ending_with_ray
from pipeline.errors import UserError

Start = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def start_raylet(tmp_path: Path) -> Iterator[Start]:
    program = shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    processes = []

    def start() -> "subprocess.Popen[bytes]":
        processes.append(subprocess.Popen([program, "600"]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def step_that_loses(start_raylet: Start) -> None:
    with ending_with_ray() as watch, one_interrupt() as handle_signals:
        process = start_raylet()
        watch.follow()
        handle_signals()
        process.kill()
        time.sleep(60)


def test_end_of_a_process_ends_the_step(
    start_raylet: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else the watch may end this process.
    monkeypatch.setattr("cluster.watch._GIVE_UP_S", 60.0)
    with pytest.raises(UserError, match=r"raylet ended in the middle of the step \(SIGKILL\)"):
        step_that_loses(start_raylet)


def test_processes_of_an_earlier_session_are_not_watched(start_raylet: Start) -> None:
    ended, ending = start_raylet(), start_raylet()
    ended.kill()
    with ending_with_ray() as watch, one_interrupt() as handle_signals:
        handle_signals()
        watch.follow()
        ending.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        watch.expect_end()
