"""Threads that work beside a block of code, or ahead of a loop, and have ended when it has."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], *, threads: int, num_ahead: int
) -> Iterator[Result]:
    """The results for the items in order, by threads that are at most `num_ahead` items ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > num_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def beside(work: Callable[[threading.Event], None], *, name: str) -> Iterator[threading.Thread]:
    """Run `work` in a thread while the block runs; it is given an event that says when to end.

    The end is waited for, whatever ends the block and however often Ctrl-C is pressed: a thread
    that still asks Ray while its session is shut down can crash the process. So each of its calls
    must be bounded in time.
    """
    is_over, has_ended = threading.Event(), threading.Event()

    def run() -> None:
        try:
            work(is_over)
        finally:
            has_ended.set()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        is_over.set()
        _wait_for(has_ended)
        thread.join()


def _wait_for(event: threading.Event) -> None:
    """Wait through any Ctrl-C; not by `join`, after whose interrupt a thread counts as ended."""
    interrupt: KeyboardInterrupt | None = None
    while not event.is_set():
        try:
            event.wait()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt:
        raise interrupt
