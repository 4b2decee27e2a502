"""Files by path, local or `s3://bucket/key`, through fsspec and s3fs.

Every artifact of the project is read and written here; contents and listings of S3 come through
`pipeline.storage.s3_objects`, and contents through s3fs where that fails. A write is atomic:
locally a temporary file beside the target and a rename; on S3 one put or, if it is large, one
upload in parts, which a killed process leaves unfinished for the bucket's lifecycle rules. The S3
endpoint, region and credentials come from the usual AWS variables (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, ...), so that MinIO and Ceph work as AWS does. What only the user can mend (a
bucket that does not exist, refused credentials, a full disk) is raised as `UserError`; a missing
file always as `FileNotFoundError`.
"""

import errno
import io
import json
import os
import random
import re
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientPayloadError
from botocore.exceptions import (
    BotoCoreError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ReadTimeoutError,
)
from fsspec.exceptions import FSTimeoutError
from obstore.exceptions import BaseError, GenericError

from pipeline.errors import PassingError, UserError
from pipeline.storage.s3_objects import (
    CONNECT_TIMEOUT_S,
    LISTING_SCHEMA,
    READ_TIMEOUT_S,
    list_objects,
    read_object,
    read_object_range,
)

MAX_ATTEMPTS = 2
"""Tries of one S3 request by botocore, in each of the tries here."""

RETRY_AFTER_S = (1.0, 5.0, 25.0)
"""Pauses before a read or write that broke for a passing reason is tried again."""
RETRY_FOR_S = 60.0
"""No such try starts later than this after the first: those that stalled have waited enough."""

_REFUSED = {
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
    "InvalidClientTokenId",
    "AuthFailure",
    "Forbidden",
    "403",
    "400",  # answers to HEAD have no other code: a token that expired
}
_NO_ANSWER = (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError, FSTimeoutError)
_OVERLOADED = {"SlowDown", "RequestTimeout", "Throttling", "RequestLimitExceeded"}
_NO_SUCH_PATH = {errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}


UNFINISHED = re.compile(r"\..+\.\d+\.[0-9a-f]{8}")
"""Names of local files that are being written; a killed process leaves them."""

_PUT_BYTES = 16 * 2**20
"""Larger objects go to S3 in parts of this size, ten at a time."""


class TooLargeError(Exception):
    """A file is larger than the caller wants to hold in memory."""


class NoRegularFileError(OSError):
    """A pipe, a socket or a device, which may never answer or never end."""


def is_remote(path: str) -> bool:
    """Whether the path is an object in S3 rather than a local file."""
    return path.startswith("s3://")


def absolute(path: str) -> str:
    """A path that means the same in another process: Ray's workers have other working folders.

    Raises:
        UserError: the path is empty, has a scheme other than `s3://`, or names no bucket.
    """
    if not path:
        raise UserError(
            "a path is empty, as of a shell variable that is not set; give a local one or "
            "s3://bucket/key"
        )
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme not in ("", "s3"):
        raise UserError(f"{path}: paths are local or s3://bucket/key, not {scheme}://")
    if not scheme:
        return str(Path(path).expanduser().resolve())
    if not urlsplit(path).netloc:
        raise UserError(f"{path}: an s3:// path names a bucket: s3://bucket/key")
    return path.rstrip("/")


def join(base: str, *parts: str) -> str:
    """The path of something inside a folder or under a prefix."""
    return "/".join([base.rstrip("/"), *parts])


def exists(path: str) -> bool:
    """Whether a file is there; an error of the storage is raised, not taken for a no."""
    with explained(path):
        try:
            return bool(with_retries(file_system(path).info, path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):
            return False


def read_bytes(path: str) -> bytes:
    """The whole content. Raises FileNotFoundError when it is not there."""
    with explained(path):
        return bytes(with_retries(read_file, path))


def read_range(path: str, offset_bytes: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes from `offset_bytes`. Raises EOFError when the file ends before."""
    data = read_file(path, offset_bytes, size_bytes)
    if len(data) != size_bytes:
        raise EOFError(f"{path}: {len(data)} bytes from {offset_bytes}, expected {size_bytes}")
    return data


def read_file(
    path: str, offset_bytes: int = 0, size_bytes: int | None = None, *, max_bytes: int | None = None
) -> bytes:
    """The content or a range of it, cut where the file ends; errors as the storage raises them.

    Raises:
        TooLargeError: the file is larger than `max_bytes`, which is found out before reading it.
    """
    if not is_remote(path):
        _check_size(path, _regular_size(path), max_bytes)
        with Path(path).open("rb") as file:
            file.seek(offset_bytes)
            return file.read(size_bytes)
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
    """Put the content in place as a whole: a reader sees the old file, none, or all of the new."""
    with new_file(path) as file:
        file.write(data)
        file.commit()


class NewFile(ABC):
    """A file to write into, which `commit` puts in place as a whole.

    A `with` block that ends without `commit` leaves no file.

    Raises:
        UserError: it cannot be written.
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
        """Put the file in place; nothing is written after that."""


def new_file(path: str) -> NewFile:
    """Local files grow beside the target, objects of S3 in memory."""
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
        # Closing writes what is still in the buffer, which is of no use now.
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
            raise UserError(f"{self.path}: cannot be written ({error.strerror})") from error


def make_folder(path: str) -> None:
    """Make a local folder and those above it; S3 has none to make.

    Raises:
        UserError: it cannot be made, or a file has its name.
    """
    if not is_remote(path):
        try:
            Path(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def remove(path: str) -> None:
    """Delete one file, if it is there."""
    if exists(path):
        with explained(path):
            with_retries(file_system(path).rm_file, path)


def list_files(folder: str) -> list[str]:
    """Paths of all files below a folder or prefix, sorted; none when it is not there."""
    return sorted(path for batch in iter_files(folder) for path in batch["path"].to_pylist())


def holds_files(folder: str) -> bool:
    """Whether there is any file below a folder or prefix."""
    return any(batch.num_rows for batch in iter_files(folder))


def file_sizes(folder: str) -> dict[str, int]:
    """Sizes in bytes of all files below a folder or prefix, by path."""
    return {
        path: size
        for batch in iter_files(folder)
        for path, size in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    }


def iter_files(folder: str) -> Iterator[pa.RecordBatch]:
    """All files below a folder or prefix, in no order, as batches of `s3_objects.LISTING_SCHEMA`.

    Listings of millions of files are never held as a whole here. None when it is not there.
    """
    inside = folder.rstrip("/") + "/"
    check_bucket(folder)
    with explained(folder):
        yield from list_objects(inside) if is_remote(folder) else _list_local(folder)


def read_json(path: str) -> Any:
    """A JSON document."""
    return json.loads(read_bytes(path))


def read_json_object(path: str) -> dict[str, Any]:
    """A JSON document of keys, as a user may have changed it or cut it short.

    Raises:
        UserError: it is none.
    """
    try:
        document = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: no whole JSON document ({error}); restore it") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: must hold a JSON object, got {type(document).__name__}")
    return document


def write_json(path: str, document: object) -> None:
    """Write a JSON document, keys in the order given; NaN is an error, not a word in the file."""
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_table(path: str, columns: list[str] | None = None) -> pa.Table:
    """A Parquet file as a table."""
    return pq.read_table(pa.BufferReader(read_bytes(path)), columns=columns)


def encode_table(table: pa.Table, rows_per_group: int | None = None) -> bytes:
    """A table as Parquet; the same table gives the same bytes."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=rows_per_group)
    return buffer.getvalue()


def write_table(path: str, table: pa.Table) -> None:
    """Write a table as Parquet."""
    write_bytes(path, encode_table(table))


def open_binary(path: str) -> io.IOBase:
    """A seekable file for reading parts of it, such as one Parquet row group."""
    if not is_remote(path):
        with explained(path):
            _regular_size(path)
    # Left to itself s3fs reads 50 MB ahead of every part.
    options = {"cache_type": "none"} if is_remote(path) else {}
    with explained(path):
        opened = with_retries(partial(file_system(path).open, path, "rb", **options))
        return cast(io.IOBase, opened)


def check_bucket(path: str) -> None:
    """Ask S3 for one key under a prefix, to fail early and in one line; nothing for a local path.

    Raises:
        UserError: no such bucket, refused or missing credentials, or an endpoint that does not
            answer.
    """
    if not is_remote(path):
        return
    bucket, _, prefix = path.removeprefix("s3://").partition("/")
    with explained(f"s3://{bucket}"):
        ask = partial(file_system(path).call_s3, "list_objects_v2", Bucket=bucket)
        # A mistyped endpoint is told of at once.
        with_retries(partial(ask, Prefix=prefix, MaxKeys=1), lasting=_NO_ANSWER)


def check_readable(uris: list[str]) -> None:
    """Read a byte of one of these files of a bucket, to fail early and in one line.

    A file that is not there or empty is no fault of the bucket. Several are tried, because S3
    answers "access denied" for a missing key to users who may not list the bucket.

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


def explain(error: BaseException) -> str | None:
    """One line for an error that only the user can mend; None for any other, as a missing file."""
    code = _error_code(error)
    if isinstance(error, FileNotFoundError) and "<Code>NoSuchBucket" in str(error):
        code = "NoSuchBucket"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    if code == "NoSuchBucket":
        return "the bucket does not exist; check its name and the endpoint"
    if code in _REFUSED or (code and isinstance(error, PermissionError)):
        return (
            f"access refused ({code}); check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            f"and the bucket's policy at {endpoint}"
        )
    if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
        return (
            "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
        )
    if isinstance(error, _NO_ANSWER):
        return f"no answer from {endpoint}; check AWS_ENDPOINT_URL and the network"
    if isinstance(error, ClientPayloadError):
        return f"answers of {endpoint} are cut short, also when asked again; check the network"
    if isinstance(error, BaseError):
        return f"no use of {endpoint}: {str(error).splitlines()[0]}"
    if isinstance(error, BotoCoreError) or str(error).startswith("Invalid endpoint"):
        return " ".join(str(error).split())
    if code and not isinstance(error, FileNotFoundError):
        return f"the storage at {endpoint} answered {code}, also when asked again"
    return None


def one_file_fault(error: Exception) -> str | None:
    """Why one file cannot be read, when the storage as a whole is well; None otherwise."""
    code = _error_code(error)
    if isinstance(error, FileNotFoundError) and code != "NoSuchBucket":
        return "not found"
    if isinstance(error, OSError) and error.errno in _NO_SUCH_PATH and not code:
        return "not found"
    # S3 answers so for a key that is not there, too, to users who may not list the bucket.
    if isinstance(error, PermissionError) and code in ("", "403", "AccessDenied"):
        return "access refused"
    if isinstance(error, IsADirectoryError):
        return "a folder, not a file"
    if isinstance(error, NoRegularFileError):
        return "no regular file"
    if code == "KeyTooLongError" or (isinstance(error, ValueError) and "null" in str(error)):
        return "a path that no file can have"
    return None


def with_retries(
    action: Any, *arguments: object, lasting: tuple[type[Exception], ...] = (UserError,)
) -> Any:
    """Call again, after the pauses of `RETRY_AFTER_S`, when a read or write broke in passing.

    Args:
        action: what to call.
        arguments: what it takes.
        lasting: errors that are raised at once, beside those that asking again cannot help.
    """
    start = time.monotonic()
    for pause_s in RETRY_AFTER_S:
        try:
            return action(*arguments)
        except Exception as error:
            is_late = time.monotonic() + pause_s > start + RETRY_FOR_S
            if isinstance(error, lasting) or not _may_pass(error) or is_late:
                raise
            time.sleep(pause_s)
    return action(*arguments)


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: no answer, a broken one, or one of an overloaded storage."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if _error_code(error):
        return status >= 500 or _error_code(error) in _OVERLOADED
    if isinstance(error, OSError):
        # EIO: a broken disk, or a network drive that has asked again long enough itself.
        return one_file_fault(error) is None and error.errno != errno.EIO
    return isinstance(error, (HTTPClientError, ClientPayloadError))


def _regular_size(path: str) -> int:
    """Size in bytes of a local file; what is a folder is left to who opens it."""
    try:
        status = Path(path).stat()
    except NotADirectoryError as error:  # a path through a file: there is nothing
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise NoRegularFileError(errno.EINVAL, "no regular file", path)
    return status.st_size


def _check_size(path: str, size_bytes: int, max_bytes: int | None) -> None:
    if max_bytes is not None and size_bytes > max_bytes:
        raise TooLargeError(f"{path}: {size_bytes} bytes, at most {max_bytes} are read")


def _read_by_s3fs(path: str, offset_bytes: int, size_bytes: int | None) -> bytes:
    # Left to itself s3fs asks for the size first, to fetch large files in pieces: two requests.
    place: dict[str, int] = {"max_concurrency": 1}
    if size_bytes is not None:
        place = {"start": offset_bytes, "end": offset_bytes + size_bytes}
    try:
        return bytes(file_system(path).cat_file(path, **place))
    except OSError as error:
        if _error_code(error) != "InvalidRange":
            raise
        return b""


def _list_local(folder: str) -> Iterator[pa.RecordBatch]:
    """Links are followed, but into no folder twice."""
    waiting, seen = [folder.rstrip("/")], set()
    while waiting:
        inside = waiting.pop()
        seen.add(os.path.realpath(inside))
        sizes: dict[str, int] = {}
        try:
            with os.scandir(f"{inside}/") as entries:
                for entry in entries:
                    path = f"{inside}/{entry.name}"
                    if not entry.is_dir():
                        dangling = entry.is_symlink() and not Path(path).exists()
                        sizes[path] = 0 if dangling else entry.stat().st_size
                    elif not entry.is_symlink() or os.path.realpath(path) not in seen:
                        waiting.append(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield pa.record_batch([list(sizes), list(sizes.values())], schema=LISTING_SCHEMA)


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Raise what only the user can mend as a `UserError` that names the path."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = explain(error)
        if reason is None and not is_remote(path) and not isinstance(error, FileNotFoundError):
            reason = getattr(error, "strerror", None)
        if reason is None:
            raise
        is_passing = _may_pass(error) or isinstance(error, (*_NO_ANSWER, GenericError))
        kind = PassingError if is_remote(path) and is_passing else UserError
        raise kind(f"{path}: {reason}") from error


def _error_code(error: BaseException) -> str:
    """The S3 error code behind an exception that s3fs translated, or an empty string."""
    return str(_response(error).get("Error", {}).get("Code", ""))


def _response(error: BaseException | None) -> dict[str, Any]:
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response
        error = error.__cause__
    return {}


def file_system(path: str) -> Any:
    """The fsspec file system of a path; for callers that hand it to another library."""
    if not is_remote(path):
        return fsspec.filesystem("file")
    remote = fsspec.filesystem(
        "s3",
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": MAX_ATTEMPTS, "mode": "standard"},
            # Servers other than AWS refuse the checksum trailers that newer clients send.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    )
    # Its tries multiply with those of botocore, and for reads with themselves.
    remote.retries = 1
    return remote
