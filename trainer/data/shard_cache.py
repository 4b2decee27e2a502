"""Copies of shards on S3 on the local disk, as many as the cache may hold.

In: a folder that all workers of a machine use, and a limit. Steps: the first read of a shard starts
a copy, one at a time, and reads go on by ranges meanwhile. Copies stay for later epochs and runs,
until the folder is emptied between runs. Out: the path to read a shard from.

Reads and copies run ahead of the training, in the order of the epoch's plan. An epoch reads all
shards equally often, so replacing copies would gain nothing: the first ones stay, and shards for
which there is no room are read by ranges.
"""

import hashlib
import logging
import re
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from filelock import FileLock

from pipeline import storage

_logger = logging.getLogger(__name__)

_SUBFOLDER = "ast-ray-shards"
"""In the given folder, which may hold other files."""
_LOCK_NAME = "lock"
_COPY = re.compile(r"[0-9a-f]{64}\.tar")
_UNFINISHED = re.compile(rf"\.{_COPY.pattern}\..*")
_PART_BYTES = 16_000_000
_PARTS_AT_ONCE = 8


class ShardCache:
    """Safe for several threads; several processes may use the folder."""

    def __init__(self, folder: str, *, max_bytes: int) -> None:
        self._folder = storage.join(folder, _SUBFOLDER)
        storage.make_folder(self._folder)
        self._max_bytes = max_bytes
        self._paths: dict[str, str] = {}
        self._copying: Future[tuple[str, str]] | None = None
        self._lock = Lock()
        # One copy at a time and none in a queue: a run that ends waits for no more than that.
        self._pool = ThreadPoolExecutor(1)

    def path(self, shard: str) -> str:
        """The path to read a shard from: its copy, or the shard itself as long as it has none.

        Raises:
            UserError: a copy, of this shard or of another, cannot be written.
        """
        with self._lock:
            if self._copying is not None and self._copying.done():
                done, self._copying = self._copying, None
                copied, path = done.result()
                self._paths[copied] = path
            if shard not in self._paths and self._copying is None:
                self._copying = self._pool.submit(self._copy, shard)
            return self._paths.get(shard, shard)

    def drop(self, shard: str) -> None:
        """Delete the copy of a shard, which is damaged; the shard is read by ranges from now on."""
        with self._lock:
            path = self._paths.get(shard, shard)
            if path != shard:
                self._paths[shard] = shard
                _logger.warning("%s: deleted, as it differs from %s", path, shard)
                with storage.explained(path):
                    Path(path).unlink(missing_ok=True)

    def _copy(self, shard: str) -> tuple[str, str]:
        """The shard and the path to read it from; another process may have made the copy."""
        try:
            num_bytes, etag = storage.object_version(shard)
        except FileNotFoundError:
            return shard, shard  # reading it says so, with the clip's name
        # A data set that is prepared again may have other shards of the same names.
        version = f"{shard} {num_bytes} {etag}"
        copy = storage.join(self._folder, f"{hashlib.sha256(version.encode()).hexdigest()}.tar")
        with storage.explained(self._folder), self._alone():
            if Path(copy).exists():
                return shard, copy
            if self._num_bytes() + num_bytes > self._max_bytes:
                return shard, shard
            try:
                with storage.explained(shard):
                    data = _read_whole(shard, num_bytes)
            except EOFError:
                return shard, shard  # it has changed; reading it says so, with the clip's name
            storage.write_bytes(copy, data)
        return shard, copy

    def _alone(self) -> FileLock:
        """Locks out the other processes of the machine; the lock ends with this process."""
        return FileLock(storage.join(self._folder, _LOCK_NAME), fallback_to_soft=False)

    def _num_bytes(self) -> int:
        """Total size of the copies; deletes those that a killed process left unfinished."""
        total = 0
        for path in Path(self._folder).iterdir():
            if _UNFINISHED.fullmatch(path.name):
                path.unlink()
            elif _COPY.fullmatch(path.name):
                total += path.stat().st_size
        return total


def _read_whole(path: str, num_bytes: int) -> bytes:
    """An object, in parallel parts: S3 sends a single stream at a fraction of the network's rate.

    Raises:
        EOFError: the object is shorter.
    """

    def read(start: int) -> bytes:
        length = min(_PART_BYTES, num_bytes - start)
        data: bytes = storage.with_retries(storage.read_range, path, start, length)
        return data

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        return b"".join(pool.map(read, range(0, num_bytes, _PART_BYTES)))
