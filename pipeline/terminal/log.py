"""Messages about the program's work, on standard error: one short line each.

Modules log to `logging.getLogger(__name__)`: warnings for what a user should act on, info for
progress, debug for details. `set_up` sets the level that is shown; Ray's processes are given that
of the program. Results are printed and errors end a step: neither is logged. Logs of libraries are
left as they are.
"""

import logging
import sys

PACKAGES = ("pipeline", "trainer", "cluster")
"""Those of the program; their loggers show its messages."""

_NAMES = {logging.DEBUG: "debug", logging.INFO: "note", logging.WARNING: "warning"}


class _StandardError(logging.Handler):
    """Prints to the current standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        name = _NAMES.get(record.levelno, "error")
        print(f"{name}: {self.format(record)}", file=sys.stderr, flush=True)


_HANDLER = _StandardError()


def set_up(level: int) -> None:
    """Show the program's messages from this level on: WARNING for --quiet, INFO or DEBUG."""
    for name in PACKAGES:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        # Ray, and libraries that log without a logger, give the root one a handler of its own.
        logger.propagate = False
        if _HANDLER not in logger.handlers:
            logger.addHandler(_HANDLER)


def level() -> int:
    """The level set by `set_up`, to pass on to other processes."""
    return logging.getLogger(PACKAGES[0]).level or logging.INFO


def is_quiet() -> bool:
    """Whether only warnings are shown, and no progress."""
    return level() > logging.INFO
