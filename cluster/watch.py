"""End a step whose local Ray has lost one of its two main processes, with one line.

Ray itself notices after 15 s (raylet) or 60 s (GCS), prints pages, and ends this process from C++.
Here a thread waits for the end of both. Steps when one ends: silence what Ray prints, interrupt the
main thread, which cleans up, and raise an error that says what happened. Should the clean-up wait
for the lost process, the thread ends this one.
"""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import signals
from cluster.machine import memory_kills
from cluster.program import print_error
from pipeline.errors import UserError

_NAMES = {"gcs_server": "control service (GCS)", "raylet": "raylet"}
"""Names of the executables, and what Ray calls the processes."""
_AGAIN_AFTER_S = 1.0
_GIVE_UP_S = 8.0
"""Time for the clean-up, less than Ray takes to end this process."""


class Watch:
    """Shared by the thread and the block that it watches."""

    def __init__(self) -> None:
        self.error: UserError | None = None
        self._is_over = threading.Event()
        self._stderr = os.dup(2)
        self._end, self._end_expected = os.pipe()
        self._kills = memory_kills()
        # Of an earlier session of this process, which has ended them but may not have reaped them.
        self._earlier = set(_ray_children())
        self._thread: threading.Thread | None = None

    def follow(self) -> None:
        """Watch the raylet and the GCS that this process has started since."""
        if threading.current_thread() is threading.main_thread():
            started = set(_ray_children()) - self._earlier
            processes = {os.pidfd_open(process): name for process, name in started}
            self._thread = threading.Thread(
                target=self._watch, args=(processes,), name="watch", daemon=True
            )
            self._thread.start()

    def expect_end(self) -> None:
        """Ray is about to be shut down."""
        os.write(self._end_expected, b".")

    def close(self) -> None:
        """Ray is shut down: this process may print to stderr again."""
        self._is_over.set()
        if self._thread:
            self._thread.join()
        if self.error:
            os.dup2(self._stderr, 2)
        for descriptor in (self._stderr, self._end, self._end_expected):
            os.close(descriptor)

    def _watch(self, processes: dict[int, str]) -> None:
        ended, _, _ = select.select([self._end, *processes], [], [])
        if self._end not in ended:
            self.error = self._explain(ended[0], processes[ended[0]])
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            main = threading.main_thread().ident or 0
            handler = signal.getsignal(signal.SIGTERM)
            signal.pthread_kill(main, signal.SIGTERM)
            # A training takes the first for a wish to stop, which its workers cannot fulfil. Where
            # the first has begun the clean-up, another could kill this process in the middle.
            is_wish = callable(handler) and handler.__module__ != signals.__name__
            if (
                is_wish
                and not self._is_over.wait(_AGAIN_AFTER_S)
                and signal.getsignal(signal.SIGTERM) is handler
            ):
                signal.pthread_kill(main, signal.SIGTERM)
            if not self._is_over.wait(_GIVE_UP_S):
                os.dup2(self._stderr, 2)
                print_error(self.error)
                sys.stderr.flush()
                os._exit(1)
        for descriptor in processes:
            os.close(descriptor)

    def _explain(self, process: int, name: str) -> UserError:
        # Its parent, Ray, collects the status later.
        result = os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOWAIT)
        status = result.si_status if result else 0
        how = signal.Signals(status).name if result and result.si_code != os.CLD_EXITED else status
        killed = memory_kills() - self._kills
        return UserError(
            "",
            f"Ray's {_NAMES[name]} ended in the middle of the step ({how}"
            + (", for lack of memory)" if killed else ")"),
            "give it more memory, and run the same command again to resume"
            if killed
            else "run the same command again to resume",
        )


@contextmanager
def ending_with_ray() -> Iterator[Watch]:
    """A watch for the block, which follows what the block tells it to.

    Raises:
        UserError: a process that it followed has ended before it was expected to.
    """
    watch = Watch()
    try:
        yield watch
    except BaseException as error:
        watch.close()
        if watch.error:
            raise watch.error from error
        raise
    else:
        watch.close()


def _ray_children() -> Iterator[tuple[int, str]]:
    """Process ids and names."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            name = (folder / "comm").read_text().strip()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if name in _NAMES and parent == os.getpid():
                yield int(folder.name), name
