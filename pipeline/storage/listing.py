"""Files below a folder or prefix, in batches: listings of millions of files are streamed.

PyArrow is loaded where it is used: `--help` need not wait for it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.storage.faults import explained
from pipeline.storage.paths import is_remote, is_usable_local, shown

if TYPE_CHECKING:
    import pyarrow as pa

_logger = logging.getLogger(__name__)


def list_files(folder: str) -> list[str]:
    """Sorted paths of all files below a folder or prefix; empty if it does not exist."""
    return sorted(path for batch in iter_files(folder) for path in batch["path"].to_pylist())


def holds_files(folder: str) -> bool:
    """Whether a folder or prefix has any file below it."""
    return any(batch.num_rows for batch in iter_files(folder))


def file_sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of all files below a folder or prefix, by path."""
    return {
        path: size
        for batch in iter_files(folder)
        for path, size in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    }


def iter_files(folder: str) -> Iterator[pa.RecordBatch]:
    """All files below a folder or prefix, in no order, in batches of `path` and `size_bytes`.

    Pipes, sockets, devices and links to nothing are among them, with 0 bytes.
    Never holds a whole listing in memory. Yields nothing if the folder does not exist.
    """
    unusable: list[str] = []
    with explained(folder):
        listed = _list_remote if is_remote(folder) else _list_local
        yield from listed(folder, unusable)
    if unusable:
        _logger.warning(
            "%s: left out %d files whose names cannot be used, such as '%s'; names must be UTF-8 "
            "without control characters, and keys have no empty, . or .. segments",
            *(folder, len(unusable), shown(unusable[0])),
        )


def _list_local(folder: str, unusable: list[str]) -> Iterator[pa.RecordBatch]:
    """Follows links, but enters no folder twice."""
    waiting, seen = [folder.rstrip("/")], set()
    while waiting:
        inside = waiting.pop()
        seen.add(os.path.realpath(inside))
        sizes: dict[str, int] = {}
        try:
            with os.scandir(f"{inside}/") as entries:
                for entry in entries:
                    path = f"{inside}/{entry.name}"
                    status = _status(entry)
                    if status and stat.S_ISDIR(status.st_mode):
                        if not entry.is_symlink() or os.path.realpath(path) not in seen:
                            waiting.append(path)
                    elif is_usable_local(path):
                        sizes[path] = _file_size(status)
                    else:
                        unusable.append(path.removeprefix(folder).lstrip("/"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield _batch(list(sizes), list(sizes.values()))


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """None for a link to nothing or in a circle."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def _file_size(status: os.stat_result | None) -> int:
    return status.st_size if status and stat.S_ISREG(status.st_mode) else 0


def _list_remote(prefix: str, unusable: list[str]) -> Iterator[pa.RecordBatch]:
    from pipeline.storage.objects import list_objects  # clients only where buckets are used

    for page in list_objects(prefix):
        unusable += page.unusable_keys
        yield _batch(page.paths, page.sizes_bytes)


def _batch(paths: list[str], sizes_bytes: list[int]) -> pa.RecordBatch:
    import pyarrow as pa

    schema = pa.schema([("path", pa.string()), ("size_bytes", pa.int64())])
    return pa.record_batch([paths, sizes_bytes], schema=schema)
