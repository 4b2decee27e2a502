"""Keep Ray's messages about itself off the terminal where they do not help the user.

They remain in the session's log files. Loggers are silenced by name: Ray 2.60 has no other switch.
"""

import logging
import os

_SKIPPED_LINES = "|".join(
    (
        # A warning of Ray Train about one of its own actors, at the start of every training run.
        "Actor with class name: 'PreemptionWatcher'",
        # A paragraph and more for each lost process. Lost workers are replaced, and what ends a
        # step is said in one line: see `cluster.watch` and `cluster.worker_errors`.
        "A worker died or was killed while executing a task",
        r"Task \S+ failed. There are \S+ retries remaining",
        "Raylet is terminated. Termination is unexpected",
        # For a lost node, which `cluster.lost_nodes` tells of in one line.
        "has been marked dead because the detector",
        # What Ray's C++ logs, and its stack traces: of a raylet that was taken for dead, for one.
        r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [DIWECF] \d+ \d+\]",
        r"^\*\*\* .* \*\*\*$",
        r"\(\S*\+0x[0-9a-f]+\) \[0x[0-9a-f]+\]",
        r"^(PC: |\s*)@\s+0x[0-9a-f]+",
        # Between and after these.
        r"^\s*$",
        r"^\[\w+\.cc : \d+\] RAW: ",
        # What Python prints of a process that crashes. (In a traceback, a comma follows the line.)
        r"^(Fatal Python error|Extension modules): ",
        r"^((Current t|T)hread 0x[0-9a-f]+|Stack) .*\(most recent call first\)",
        r"^  File \".*\", line \d+ in\b",
    )
)
"""Parts of messages that Ray sends to the driver, line by line."""

_LEVELS = {
    # Says at every start that authentication is on, as intended: see `cluster.session`.
    "ray._private.authentication": logging.ERROR,
    # Report every connection to a job server, and every folder that an upload leaves out.
    "ray.dashboard.modules.dashboard_sdk": logging.WARNING,
    "ray.dashboard.modules.job.sdk": logging.WARNING,
    "ray._private.runtime_env.packaging": logging.WARNING,
    "ray._private.runtime_env.working_dir": logging.ERROR,
}


def skip_lines_of_workers() -> None:
    """Drop lines about Ray's own processes. Call it before `ray` is imported, which reads them."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _SKIPPED_LINES)
    # Those of the autoscaler, the same ones each second. Steps say what they wait for.
    os.environ.setdefault("RAY_SCHEDULER_EVENTS", "0")


def quiet_loggers() -> None:
    """Set the levels of Ray's loggers in this process."""
    for name, level in _LEVELS.items():
        logging.getLogger(name).setLevel(level)
