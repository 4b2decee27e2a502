"""One interrupt for all signals that stop a step, however often they are sent."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_AFTER_S = 10.0
"""A signal within this time after the first does not disturb the clean-up that the first began."""


@contextmanager
def one_interrupt() -> Iterator[Callable[[], None]]:
    """Raise KeyboardInterrupt once on Ctrl-C or SIGTERM, which batch systems send.

    A second signal in the middle of Ray's clean-up would leave it half done, with an error about
    that. So it is ignored for some seconds, and whatever ends the block after a signal ends it as
    KeyboardInterrupt.

    Yields:
        A function that sets the handlers again, for after `ray.init`, which sets its own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    first: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first or now - first[0] > _AGAIN_AFTER_S:
            first[:] = [now]
            raise KeyboardInterrupt

    # Where a shell or a parent ignores Ctrl-C, it stays so.
    replaced = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }

    def install() -> None:
        for number in replaced:
            signal.signal(number, interrupt)

    install()
    try:
        yield install
    except BaseException as error:
        if first and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
