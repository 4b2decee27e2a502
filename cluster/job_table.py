"""The jobs of a cluster: a table for people, or JSON for programs.

In: the address of a job server. Out: printed, the newest job last.
"""

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.job_server import connect

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A submitted job; its fields are the keys of `jobs --json`, which stay as they are."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    start: str | None
    """When it was submitted: ISO 8601, UTC, to the millisecond."""
    end: str | None
    """When it ended; None while it has not."""
    exit_status: int | None
    """Of its command; negative if a signal ended it, None if it has not ended or never ran."""
    entrypoint: str
    message: str | None
    """What Ray says of its state."""

    @classmethod
    def of(cls, details: Any) -> Self:
        """From what Ray's client returns."""
        return cls(
            id=details.submission_id,
            status=details.status.value,
            start=_iso(details.start_time),
            end=_iso(details.end_time),
            exit_status=details.driver_exit_code,
            entrypoint=details.entrypoint,
            message=details.message,
        )


def list_jobs(*, address: str | None = None, as_json: bool = False) -> None:
    """Print the jobs submitted to the server, as a table or as a JSON list of `Job`.

    Raises:
        UserError: the server cannot be reached or refuses.
    """
    server = connect(address)
    submitted = [job for job in server.list_jobs() if job.submission_id]
    jobs = [Job.of(job) for job in sorted(submitted, key=lambda job: job.start_time or 0)]
    if as_json:
        print(json.dumps([asdict(job) for job in jobs], indent=2))
    elif jobs:
        _print_table(jobs)
    else:
        _logger.info("no jobs at %s", server.get_address())


def _print_table(jobs: list[Job]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("ID", "STATUS", "START", "DURATION"):
        table.add_column(title, no_wrap=True)
    table.add_column("ENTRYPOINT", overflow="fold")
    for job in jobs:
        table.add_row(*(Text(cell) for cell in _row(job)))
    # Output in a pipe is for programs: do not fold lines at 80 columns.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _row(job: Job) -> tuple[str, str, str, str, str]:
    start_s = datetime.fromisoformat(job.start).timestamp() if job.start else 0.0
    end_s = datetime.fromisoformat(job.end).timestamp() if job.end else time.time()
    start = datetime.fromtimestamp(start_s).isoformat(sep=" ", timespec="seconds")
    duration = str(timedelta(seconds=max(0, round(end_s - start_s))))
    return job.id, job.status, start, duration, job.entrypoint


def _iso(time_ms: int | None) -> str | None:
    if not time_ms:
        return None
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="milliseconds")
