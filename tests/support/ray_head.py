"""A Ray head node with a job server on loopback, beside any other Ray on the machine."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import jobs
from pipeline.errors import UserError
from tests.support.patience import PATIENCE

START_S = 300.0


@dataclass(frozen=True)
class Cluster:
    url: str
    gcs_address: str
    project: str


def free_ports(num: int) -> list[int]:
    """Ports that are free now and differ from each other.

    They are below the ephemeral range, so that only a process that names one can take it. Test
    processes side by side choose among different ones, as a port is free until its server starts.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    num_processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    free: list[int] = []
    for port in random.sample(range(20_000 + number, 32_000, num_processes), 1_000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            free.append(port)
        if len(free) == num:
            return free
    raise AssertionError(f"no {num} ports are free")


def submit_when_ready(
    cluster: Cluster, process: subprocess.Popen[bytes], *arguments: str, submission_id: str
) -> None:
    """Start a job; a server that has just started takes a while to accept any."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            jobs.submit(
                arguments,
                working_dir=cluster.project,
                address=cluster.url,
                submission_id=submission_id,
                wait=False,
            )
            return
        except UserError as error:
            starting = "no job server answers" in str(error) or "No available agent" in str(error)
            if not starting or process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def small_environment(folder: Path) -> Path:
    """Python of a new virtual environment that finds the packages of this one, and has pip.

    Ray copies all of the environment that it runs in for a job that asks for packages.
    """
    options = [
        "--quiet",
        "--no-download",
        "--no-periodic-update",
        "--app-data",
        str(folder / "seeds"),
    ]
    command = [sys.executable, "-m", "virtualenv", *options, str(folder / "small")]
    subprocess.run(command, check=True)
    (packages,) = (folder / "small" / "lib").glob("python*/site-packages")
    (packages / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "small" / "bin" / "python"


@contextlib.contextmanager
def started(
    folder: str, project: str, python: str = sys.executable
) -> Iterator[tuple[Cluster, subprocess.Popen[bytes]]]:
    """A cluster of one node with one CPU, run by a Python; the caller waits for it to be ready."""
    names = (
        "port", "dashboard-port", "node-manager-port", "object-manager-port",
        "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
        "metrics-export-port", "ray-client-server-port",
    )  # fmt: skip
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    command = [
        python, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--disable-usage-stats",
        f"--temp-dir={folder}", "--min-worker-port=0", "--max-worker-port=0",
        *(f"--{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    without = ("RAY_", "PYTHONDONTWRITEBYTECODE", "AWS_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(without)}
    environment |= {
        "RAY_AUTH_MODE": "disabled",
        **PATIENCE,
        # Of the dashboard and of its parts; 60 and 30 s by default.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": "240",
    }
    environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
    # Its output is shown with the tests that fail without it.
    process = subprocess.Popen(command, env=environment, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        yield Cluster(url, f"127.0.0.1:{ports['port']}", project), process
    finally:
        process.terminate()
        process.wait(60)
