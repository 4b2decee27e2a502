"""Files by path, local or in a bucket (`s3://bucket/key`, `gs://`, `az://`).

All files of the project are read and written here; buckets through `pipeline.storage.objects`. A
write is atomic: locally a temporary file beside the target and a rename; in a bucket one put or, if
large, one multipart upload, which goes on while the file is written, and whose parts a killed
process leaves behind (see `uploads`).
Errors to explain to the user (a bucket that does not exist, refused credentials, a full
disk, no answer) are raised as `UserError`; a missing file always as `FileNotFoundError`.
"""

import errno
import io
import os
import random
import stat
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Self, cast

from pipeline.errors import UserError
from pipeline.storage.abandoned import lock_unfinished, remove_abandoned
from pipeline.storage.faults import (
    NoRegularFileError,
    TooLargeError,
    explained,
    one_file_fault,
    with_retries,
)
from pipeline.storage.paths import is_remote, split
from pipeline.storage.temporary import explained_temporary

_KEPT_IN_MEMORY_BYTES = 256 * 2**20
"""Of a file that goes to a bucket; a larger one is kept in the folder for temporary files."""


def exists(path: str) -> bool:
    """Whether a file exists; an error of the storage is raised, not read as "no"."""
    with explained(path):
        try:
            with_retries(_objects().object_info if is_remote(path) else regular_size, path)
        except (FileNotFoundError, IsADirectoryError, NoRegularFileError):
            return False
        return True


def read_bytes(path: str) -> bytes:
    """The whole content.

    Raises:
        FileNotFoundError: no such file.
        NoFileError: a folder, pipe, socket or device.
    """
    with explained(path):
        return bytes(with_retries(read_file, path))


def read_range(path: str, offset_bytes: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes from `offset_bytes`. Raises EOFError if the file ends earlier."""
    data = read_file(path, offset_bytes, size_bytes)
    if len(data) != size_bytes:
        raise EOFError(f"{path}: {len(data)} bytes from {offset_bytes}, expected {size_bytes}")
    return data


def read_file(
    path: str, offset_bytes: int = 0, size_bytes: int | None = None, *, max_bytes: int | None = None
) -> bytes:
    """The content or a range of it, up to the end of the file; raises the storage's own errors.

    Raises:
        TooLargeError: the file is larger than `max_bytes`, which is checked before reading it.
    """
    if not is_remote(path):
        _check_size(path, regular_size(path), max_bytes)
        with Path(path).open("rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
    if size_bytes is None:
        check_size = partial(_check_size, path, max_bytes=max_bytes)
        return bytes(_objects().read_object(path, check_size))
    return bytes(_objects().read_object_range(path, offset_bytes, size_bytes))


def regular_size(path: str) -> int:
    """Size in bytes of a local file; to open anything else may wait for ever.

    Raises:
        FileNotFoundError: no such file, or links that go in a circle.
        IsADirectoryError, NoRegularFileError: something else.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        # A part of the path is a file, or links go in a circle.
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise FileNotFoundError(path) from error
        raise
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise NoRegularFileError(errno.EINVAL, "not a regular file", path)
    return status.st_size


def write_bytes(path: str, data: bytes) -> None:
    """Write the content atomically: a reader sees the old file, none, or all of the new one."""
    if is_remote(path):
        _write_object(path, io.BytesIO(data))  # no copy
        return
    with new_file(path) as file:
        file.write(data)
        file.commit()


class NewFile(ABC):
    """A file to write into, which `commit` puts in place atomically.

    A `with` block that ends without `commit` leaves no file. Every method raises `UserError` if the
    file cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def write(self, data: bytes | memoryview, /) -> None:
        """Append bytes."""

    @abstractmethod
    def commit(self) -> None:
        """Put the file in place; nothing may be written afterwards."""


def new_file(path: str) -> NewFile:
    """A new file, which grows beside its target, or in parts of an upload to its bucket."""
    return _NewObject(path) if is_remote(path) else _NewLocalFile(path)


class _NewObject(NewFile):
    """Is uploaded while it grows, and kept meanwhile, as an upload that fails begins anew."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with explained(path):
            self._upload = _objects().GrowingUpload(path)
        self._kept = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (`__exit__` closes it)
            max_size=_KEPT_IN_MEMORY_BYTES
        )

    def __exit__(self, *_: object) -> None:
        self._upload.cancel()
        # Closing writes the rest of the buffer, which may fail and is no longer needed.
        with suppress(OSError):
            self._kept.close()

    def write(self, data: bytes | memoryview, /) -> None:
        with explained_temporary(f"a copy of {self.path}"):
            self._kept.write(data)
        self._upload.write(data)

    def commit(self) -> None:
        if self._upload.finish():
            return
        with explained_temporary(f"a copy of {self.path}"):
            self._kept.flush()
        _write_object(self.path, self._kept)


def _write_object(path: str, content: IO[bytes]) -> None:
    with explained(path):
        with_retries(_objects().write_object, path, content)


class _NewLocalFile(NewFile):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        target = Path(path)
        name = f".{target.name}.{os.getpid()}.{random.getrandbits(32):08x}"
        self._aside = target.with_name(name)
        with self._explained():
            target.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(str(target.parent))
            self._file = self._aside.open("wb")
            # Held by another descriptor than the file's, which is closed before the rename.
            self._lock = lock_unfinished(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        # Closing writes the rest of the buffer, which may fail and is no longer needed.
        with suppress(OSError):
            self._file.close()
        with self._explained():
            self._aside.unlink(missing_ok=True)
        with suppress(OSError):
            os.close(self._lock)

    def write(self, data: bytes | memoryview, /) -> None:
        with self._explained():
            self._file.write(data)

    def commit(self) -> None:
        with self._explained():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._aside.replace(self.path)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _unwritable(self.path, error) from error


def make_folder(path: str) -> None:
    """Create a local folder and its parents; buckets have no folders.

    Raises:
        UserError: it cannot be created, or a file has its name.
    """
    if not is_remote(path):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(path, error) from error


def _unwritable(path: str, error: OSError) -> UserError:
    blocked = isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError)
    remedy = "remove what is in its place, or give another path" if blocked else ""
    return UserError(path, f"cannot be written ({error.strerror})", remedy)


def remove(path: str) -> None:
    """Delete a file, or a pipe or link in its place, if it exists.

    Raises:
        NoFileError: it is a folder.
    """
    with explained(path):
        if is_remote(path):
            with_retries(_objects().remove_object, path)
            return
        with suppress(NotADirectoryError):  # a part of the path is a file
            with_retries(partial(Path(path).unlink, missing_ok=True))


def open_binary(path: str) -> io.IOBase:
    """A seekable file, for reading parts of it such as one Parquet row group."""
    with explained(path):
        if not is_remote(path):
            regular_size(path)
            return cast(io.IOBase, with_retries(partial(Path(path).open, "rb")))
        try:
            return _ReadObject(path, with_retries(_objects().object_info, path).size_bytes)
        except FileNotFoundError:
            check_bucket(path)  # the answer does not tell a missing bucket from a missing key
            raise


class _ReadObject(io.RawIOBase):
    """An object, read by a request for each call of `read`."""

    def __init__(self, path: str, size_bytes: int) -> None:
        super().__init__()
        self._path, self._size_bytes, self._position = path, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, start[whence] + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        size_bytes = min(len(buffer), max(0, self._size_bytes - self._position))
        if size_bytes:
            with explained(self._path):
                data = with_retries(read_range, self._path, self._position, size_bytes)
            buffer[:size_bytes] = data
        self._position += size_bytes
        return size_bytes


def check_bucket(path: str) -> None:
    """Ask for one key under a prefix, to fail early and in one line; ignores local paths.

    Raises:
        UserError: no such bucket, refused or missing credentials, or no answer from the endpoint.
    """
    if not is_remote(path):
        return
    where = split(path)
    with explained(f"{where.scheme}://{where.bucket}"):
        with_retries(_objects().ask_bucket, path)


def object_version(path: str) -> tuple[int, str]:
    """Size in bytes of a remote file, and a text that changes with its content."""
    with explained(path):
        info = with_retries(_objects().object_info, path)
    return info.size_bytes, info.version


def check_readable(uris: list[str]) -> None:
    """Read a byte of one of these files of a bucket, to fail early and in one line.

    A missing or empty file does not count as a fault. Several files are tried, because S3 answers
    "access denied" for a missing key if the user may not list the bucket.

    Raises:
        UserError: no such bucket, refused or missing credentials, or no answer.
    """
    for number, uri in enumerate(uris, start=1):
        with explained(uri):
            try:
                with_retries(read_range, uri, 0, 1)
                return
            except EOFError:
                return
            except Exception as error:
                fault = one_file_fault(error)
                if fault == "not found":
                    return
                if fault is None or number == len(uris):
                    raise


def _check_size(path: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLargeError(f"{path}: {size_bytes} bytes, at most {max_bytes} are read")


def _objects() -> Any:
    """The module for buckets, whose clients are loaded only where buckets are used."""
    from pipeline.storage import objects

    return objects
