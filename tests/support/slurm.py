"""A Slurm of two nodes on this machine: Debian's `slurmctld`, `slurmd` and `munged`, for one test.

Without systemd and control groups, in a folder of its own and on ports of its own.
"""

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support.ray_head import free_ports

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
CPUS_PER_NODE = 4
"""More than the machine has, so that jobs share nodes."""
NODES = ("n1", "n2")

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control_port}
SlurmUser={user}
SlurmdUser={user}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until its old credentials have expired.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=1,sched_interval=2
KillWait=30
MinJobAge=600
GresTypes=gpu
MessageTimeout=100
{nodes}
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True)
class Slurm:
    """A running Slurm."""

    folder: Path
    environment: dict[str, str]

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """A command of Slurm; returns what it prints."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says, such as JobState and ExitCode."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, job_id: str, *states: str, timeout_s: float = 900) -> dict[str, str]:
        """Wait until a job is in one of the states; returns what `job` does."""
        deadline = time.monotonic() + timeout_s
        while (job := self.job(job_id))["JobState"] not in states:
            assert time.monotonic() < deadline, (job, self.logs())
            time.sleep(0.3)
        return job

    def logs(self) -> str:
        """The last lines of Slurm's logs."""
        return "\n".join(
            "\n".join([path.name, *path.read_text().splitlines()[-15:]])
            for path in sorted(self.folder.glob("*.log"))
        )


def missing_programs() -> list[str]:
    """Slurm's programs that are not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextmanager
def started(folder: Path) -> Iterator[Slurm]:
    """A Slurm that has its nodes up; it ends with the block, and its jobs with it."""
    environment = {
        **os.environ,
        "PATH": f"{os.environ['PATH']}:/usr/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    slurm = Slurm(folder, environment)
    _configure(folder)
    commands: list[Sequence[str]] = [
        _munged(folder),
        ("slurmctld", "-D"),
        *(("slurmd", "-D", "-N", name) for name in NODES),
    ]
    with ExitStack() as running:
        for number, command in enumerate(commands):
            log = running.enter_context((folder / f"{number}.log").open("w"))
            running.enter_context(_running(command, environment, log))
            if command[0] == "munged":
                _wait_for(lambda: (folder / "munge" / "socket").exists(), slurm)
        _wait_for(lambda: _lines(slurm, "sinfo", "--Node", "--format=%T") == ["idle"] * 2, slurm)
        try:
            yield slurm
        finally:
            slurm.run("scancel", f"--user={getpass.getuser()}")
            _wait_for(lambda: not _lines(slurm, "squeue"), slurm)


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str], log: IO[str]) -> Iterator[None]:
    with subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


def _configure(folder: Path) -> None:
    for name in ("state", "munge", *(f"spool.{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    control_port, *ports = free_ports(1 + len(NODES))
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
        f"CPUs={CPUS_PER_NODE} RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
        for name, port in zip(NODES, ports, strict=True)
    )
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(
            folder=folder, user=getpass.getuser(), host=host, control_port=control_port, nodes=nodes
        )
    )
    devices = [folder / f"gpu{number}" for number in range(2)]
    for device in devices:
        device.touch()
    lines = [f"NodeName={','.join(NODES)} Name=gpu File={device}" for device in devices]
    (folder / "gres.conf").write_text("\n".join(["AutoDetect=off", *lines, ""]))


def _munged(folder: Path) -> Sequence[str]:
    munge = folder / "munge"
    return (
        "munged", "--foreground", "--force", f"--key-file={munge}/key", f"--socket={munge}/socket",
        f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
    )  # fmt: skip


def _lines(slurm: Slurm, *command: str) -> list[str]:
    """What a command prints; nothing while Slurm starts."""
    done = subprocess.run(
        [*command, "--noheader"],
        env=slurm.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


def _wait_for(condition: Callable[[], bool], slurm: Slurm) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, slurm.logs()
        time.sleep(0.2)
