"""What the program sets up in a process that Ray has started, before its own code runs."""

import sys
from collections.abc import Callable
from typing import Any

from pipeline.terminal import log


class _AllButExits:
    """Reports errors that Python cannot raise, as before; but not that a process is to end."""

    def __init__(self, report: Callable[[Any], Any]) -> None:
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, SystemExit):
            self._report(unraisable)


def set_up(log_level: int) -> None:
    """Show messages from this level on, and no traceback where Ray ends the process.

    Ray ends processes by SIGTERM, on which its handler raises SystemExit. Python reports that as
    an ignored error if it comes where nothing can be raised, as in a destructor. A process may be
    set up again.
    """
    log.set_up(log_level)
    if not isinstance(sys.unraisablehook, _AllButExits):
        sys.unraisablehook = _AllButExits(sys.unraisablehook)
