"""What the program says of itself, on standard error: one short line a message.

Modules log to `logging.getLogger(__name__)`: what a user should act on as a warning, what goes on
as info, details as debug. `set_up` decides what is shown, in the program and in each process of
Ray's, which gets the level of the program. Results are printed and errors end a step: neither is
logged. Libraries log as they do anywhere.
"""

import logging
import sys

_PACKAGES = ("pipeline", "trainer", "cluster")
_NAMES = {logging.DEBUG: "debug", logging.INFO: "note", logging.WARNING: "warning"}


class _StandardError(logging.Handler):
    """Prints to what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        name = _NAMES.get(record.levelno, "error")
        print(f"{name}: {self.format(record)}", file=sys.stderr, flush=True)


_HANDLER = _StandardError()


def set_up(level: int, *, is_worker: bool = False) -> None:
    """Show what the program says from this level on.

    Args:
        level: WARNING for --quiet, INFO, or DEBUG for --verbose.
        is_worker: whether this is a process of Ray's, whose root logger has handlers of its own.
    """
    for name in _PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = not is_worker
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


def level() -> int:
    """The level that `set_up` was given, to hand on to other processes."""
    return logging.getLogger(_PACKAGES[0]).level or logging.INFO


def is_quiet() -> bool:
    """Whether only warnings are shown, and no progress."""
    return level() > logging.INFO
