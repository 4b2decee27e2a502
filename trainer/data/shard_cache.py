"""Whole shards of S3 on the disk of this machine, as many as there is room for.

In: a folder that all workers of the machine share, and its bound. Steps: the first read of a shard
asks for a copy, one of which is made at a time while reads go on by ranges; copies stay, for
epochs and runs to come, until someone empties the folder between runs. Out: where to read a shard
from.

The reads run ahead of the training in the order of the epoch's plan, and so do the copies they ask
for. An epoch reads every shard as often as any other, so nothing is gained by exchanging copies:
what came first stays, and the shards that found no room are read by ranges.
"""

import hashlib
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from filelock import FileLock

from pipeline import storage

_SUBFOLDER = "ast-ray-shards"
"""Of the folder that is given, which may hold anything."""
_LOCK_NAME = "lock"
_COPY = re.compile(r"[0-9a-f]{64}\.tar")
_UNFINISHED = re.compile(rf"\.{_COPY.pattern}\..*")
_PART_BYTES = 16_000_000
_PARTS_AT_ONCE = 8


class ShardCache:
    """May be used by several threads, and the folder by several processes."""

    def __init__(self, folder: str, *, max_bytes: int) -> None:
        self._folder = storage.join(folder, _SUBFOLDER)
        storage.make_folder(self._folder)
        self._max_bytes = max_bytes
        self._places: dict[str, str] = {}
        self._copying: Future[tuple[str, str]] | None = None
        self._lock = Lock()
        # One copy at a time and none in a queue: a run that ends waits for no more than that.
        self._pool = ThreadPoolExecutor(1)

    def place(self, shard: str) -> str:
        """Where to read a shard from now: its copy, or itself while or because there is none.

        Raises:
            UserError: a copy, of this shard or of another, cannot be written.
        """
        with self._lock:
            if self._copying is not None and self._copying.done():
                done, self._copying = self._copying, None
                copied, place = done.result()
                self._places[copied] = place
            if shard not in self._places and self._copying is None:
                self._copying = self._pool.submit(self._copy, shard)
            return self._places.get(shard, shard)

    def _copy(self, shard: str) -> tuple[str, str]:
        """The shard and where to read it from; a copy of another process' will do."""
        try:
            facts = storage.with_retries(storage.file_system(shard).info, shard)
        except FileNotFoundError:
            return shard, shard  # reading it says so, with the clip's name
        # A data set that is prepared again has other shards under the same names.
        version = f"{shard} {facts['size']} {facts['ETag']}"
        copy = storage.join(self._folder, f"{hashlib.sha256(version.encode()).hexdigest()}.tar")
        with storage.explained(self._folder), self._alone():
            if Path(copy).exists():
                return shard, copy
            if self._num_bytes() + facts["size"] > self._max_bytes:
                return shard, shard
            try:
                with storage.explained(shard):
                    data = _read_whole(shard, facts["size"])
            except EOFError:
                return shard, shard  # it has changed; reading it says so, with the clip's name
            storage.write_bytes(copy, data)
        return shard, copy

    def _alone(self) -> FileLock:
        """Only one process of the machine at a time; the lock ends with it, however it ends."""
        return FileLock(storage.join(self._folder, _LOCK_NAME), fallback_to_soft=False)

    def _num_bytes(self) -> int:
        """The size of the copies; those that a process left unfinished are deleted."""
        total = 0
        for path in Path(self._folder).iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
            elif _COPY.fullmatch(path.name):
                total += path.stat().st_size
        return total


def _read_whole(path: str, num_bytes: int) -> bytes:
    """An object, in parts side by side: S3 sends a single one at a fraction of the network's rate.

    Raises:
        EOFError: it is shorter.
    """

    def read(start: int) -> bytes:
        length = min(_PART_BYTES, num_bytes - start)
        data: bytes = storage.with_retries(storage.read_range, path, start, length)
        return data

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        return b"".join(pool.map(read, range(0, num_bytes, _PART_BYTES)))
