"""Files by path, local or `s3://bucket/key`.

All files of the project are read and written here. Contents on S3 are read through
`pipeline.storage.obstore_reads`, with s3fs as the fallback. A write is atomic: locally a temporary
file beside the target and a rename; on S3 one put or, if large, one multipart upload, which a
killed process leaves unfinished for the bucket's lifecycle rules. The S3 endpoint, region and
credentials come from the usual AWS variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...), so
that MinIO and Ceph work as AWS does. Errors to explain to the user (a bucket that does not exist,
refused credentials, a full disk, no answer) are raised as `UserError`; a missing file always as
`FileNotFoundError`.
"""

import errno
import io
import os
import random
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from pipeline.errors import UserError
from pipeline.storage.faults import (
    NO_ANSWER,
    NoRegularFileError,
    TooLargeError,
    error_code,
    explained,
    one_file_fault,
    with_retries,
)
from pipeline.storage.paths import is_remote

UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")
"""Names of local files that are being written; a killed process leaves them behind."""

_PUT_BYTES = 16 * 2**20
"""Larger objects go to S3 in parts of this size, ten at a time."""


def exists(path: str) -> bool:
    """Whether a file exists; an error of the storage is raised, not read as "no"."""
    with explained(path):
        try:
            if not is_remote(path):
                return stat.S_ISREG(with_retries(Path(path).stat).st_mode)
            return bool(with_retries(file_system(path).info, path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False


def read_bytes(path: str) -> bytes:
    """The whole content. Raises FileNotFoundError if there is no such file."""
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
        _check_size(path, _regular_size(path), max_bytes)
        with Path(path).open("rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
    from pipeline.storage.obstore_reads import read_object, read_object_range  # as in file_system

    try:
        if size_bytes is None:
            return read_object(path, lambda size: _check_size(path, size, max_bytes))
        return read_object_range(path, offset_bytes, size_bytes)
    except TooLargeError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
            raise FileNotFoundError(path) from error
        if max_bytes is not None:
            _check_size(path, file_system(path).info(path)["size"], max_bytes)
        return _read_by_s3fs(path, offset_bytes, size_bytes)


def write_bytes(path: str, data: bytes) -> None:
    """Write the content atomically: a reader sees the old file, none, or all of the new one."""
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
    """A new file, which grows beside its target, or in memory if it is on S3."""
    return _NewObject(path) if is_remote(path) else _NewLocalFile(path)


class _NewObject(NewFile):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._buffer = io.BytesIO()

    def __exit__(self, *_: object) -> None:
        self._buffer.close()

    def write(self, data: bytes | memoryview, /) -> None:
        self._buffer.write(data)

    def commit(self) -> None:
        content = self._buffer.getvalue()
        with explained(self.path):
            with_retries(file_system(self.path).pipe_file, self.path, content, _PUT_BYTES)


class _NewLocalFile(NewFile):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        target = Path(path)
        name = f".{target.name}.{os.getpid()}.{random.getrandbits(32):08x}"
        self._aside = target.with_name(name)
        with self._explained():
            target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._aside.open("wb")

    def __exit__(self, *_: object) -> None:
        # Closing writes the rest of the buffer, which may fail and is no longer needed.
        with suppress(OSError):
            self._file.close()
        with self._explained():
            self._aside.unlink(missing_ok=True)

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
            raise UserError(self.path, f"cannot be written ({error.strerror})") from error


def make_folder(path: str) -> None:
    """Create a local folder and its parents; S3 has no folders.

    Raises:
        UserError: it cannot be created, or a file has its name.
    """
    if not is_remote(path):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(path, f"cannot be written ({error.strerror})") from error


def remove(path: str) -> None:
    """Delete a file, if it exists."""
    if exists(path):
        with explained(path):
            if is_remote(path):
                with_retries(file_system(path).rm_file, path)
            else:
                with_retries(Path(path).unlink)


def open_binary(path: str) -> io.IOBase:
    """A seekable file, for reading parts of it such as one Parquet row group."""
    with explained(path):
        if not is_remote(path):
            _regular_size(path)
            return cast(io.IOBase, with_retries(partial(Path(path).open, "rb")))
        # By default s3fs reads 50 MB ahead of every part.
        opened = partial(file_system(path).open, path, "rb", cache_type="none")
        return cast(io.IOBase, with_retries(opened))


def check_bucket(path: str) -> None:
    """Ask S3 for one key under a prefix, to fail early and in one line; ignores local paths.

    Raises:
        UserError: no such bucket, refused or missing credentials, or no answer from the endpoint.
    """
    if not is_remote(path):
        return
    bucket, _, prefix = path.removeprefix("s3://").partition("/")
    with explained(f"s3://{bucket}"):
        ask = partial(file_system(path).call_s3, "list_objects_v2", Bucket=bucket)
        # No retries without an answer, so that a mistyped endpoint is reported at once.
        with_retries(partial(ask, Prefix=prefix, MaxKeys=1), lasting=NO_ANSWER)


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
                read_range(uri, 0, 1)
                return
            except EOFError:
                return
            except Exception as error:
                fault = one_file_fault(error)
                if fault == "not found":
                    return
                if fault is None or number == len(uris):
                    raise


def _regular_size(path: str) -> int:
    """Size in bytes of a local file; folders are left to the caller."""
    try:
        status = Path(path).stat()
    except NotADirectoryError as error:  # a part of the path is a file
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise NoRegularFileError(errno.EINVAL, "not a regular file", path)
    return status.st_size


def _check_size(path: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLargeError(f"{path}: {size_bytes} bytes, at most {max_bytes} are read")


def _read_by_s3fs(path: str, offset_bytes: int, size_bytes: int | None) -> bytes:
    # By default s3fs asks for the size first, to fetch large files in pieces: two requests.
    options: dict[str, int] = {"max_concurrency": 1}
    if size_bytes is not None:
        options = {"start": offset_bytes, "end": offset_bytes + size_bytes}
    try:
        return bytes(file_system(path).cat_file(path, **options))
    except OSError as error:
        if error_code(error) != "InvalidRange":
            raise
        return b""


def file_system(path: str) -> Any:
    """The fsspec file system of a path; for callers that hand it to another library."""
    if is_remote(path):
        from pipeline.storage import s3fs_client  # S3 clients only where S3 is used

        return s3fs_client.file_system()
    import fsspec

    return fsspec.filesystem("file")
