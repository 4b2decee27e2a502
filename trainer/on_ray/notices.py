"""Why a worker of a training is to leave: SIGTERM, the end of its node, or Ray Train's controller.

Each process has one run; the training thread asks before every step.
"""

import signal
from types import FrameType

# Ray 2.60 offers the end of a node in public only by a call that waits for all workers.
from ray.train.v2._internal.execution.context import get_train_context

_reasons: list[str] = []


def listen() -> None:
    """Take SIGTERM as a notice. Called in the main thread of a worker, which polls serve."""

    def note(number: int, frame: FrameType | None) -> None:
        ask("a worker was told to end by SIGTERM")

    signal.signal(signal.SIGTERM, note)


def ask(reason: str) -> None:
    """Ask this process to leave its run."""
    _reasons.append(reason)


def reason() -> str:
    """Why this process is to leave; empty if it is not."""
    if _reasons:
        return _reasons[0]
    info = get_train_context().preemption_context.preemption_info
    return "a node is about to be shut down" if info is not None else ""
