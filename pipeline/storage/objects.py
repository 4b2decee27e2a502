"""Objects in buckets, through obstore: contents, listings, writes.

In: remote paths. Out: contents; FileNotFoundError for a missing object; `ObjectStoreError` for
anything else that goes wrong, with the storage's answer. Requests that may succeed later are
repeated by the callers, see `pipeline.storage.faults`.
"""

import io
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any

import obstore
from botocore.exceptions import ClientError, HTTPClientError
from obstore.exceptions import BaseError, InvalidPathError

from pipeline.errors import first_line
from pipeline.storage.faults import ObjectStoreError, note_answer, with_retries
from pipeline.storage.paths import ObjectPath, is_usable_key, split
from pipeline.storage.stores import connect, request_payer, s3_file_system

_logger = logging.getLogger(__name__)

_PART_BYTES = 16 * 2**20
"""Larger objects are written in parts of this size, some at a time."""
_PARTS_AT_ONCE = 4
_KEYS_PER_PAGE = 1000
_RANGE_NOT_SATISFIABLE = 416


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a listing says of an object."""

    size_bytes: int
    version: str
    """Changes with the content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A part of a listing: paths and sizes of some objects."""

    paths: list[str]
    sizes_bytes: list[int]
    unusable_keys: list[str]
    """Keys there that no path can name."""


def read_object(path: str, check_size: Callable[[int], None]) -> bytes:
    """The whole content.

    Args:
        path: of the object.
        check_size: called with the size in bytes before the content is read; may raise.
    """
    with _translated(path) as (store, key):
        response = obstore.get(store, key)
        check_size(response.meta["size"])
        return bytes(response.bytes())


def read_object_range(path: str, offset_bytes: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes, or fewer if the object ends earlier."""
    try:
        with _translated(path) as (store, key):
            return bytes(obstore.get_range(store, key, start=offset_bytes, length=size_bytes))
    except ObjectStoreError as error:
        if error.status != _RANGE_NOT_SATISFIABLE and "Wanted range starting" not in error.text:
            raise
        return b""


def write_object(path: str, content: IO[bytes]) -> None:
    """Write an object from a file, in one put or, if large, in one multipart upload."""
    in_parts = content.seek(0, io.SEEK_END) > _PART_BYTES
    content.seek(0)
    try:
        with _translated(path) as (store, key):
            obstore.put(
                store,
                key,
                content,
                use_multipart=in_parts,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )
    except Exception:
        # If the answer to the end of an upload is lost, a retry finds no such upload.
        if not (in_parts and _holds(path, content)):
            raise


class GrowingUpload:
    """An upload in parts of what is written into it; it gives up at the first fault.

    Content of no more than a part is not sent.
    """

    def __init__(self, path: str) -> None:
        where = split(path)
        self._writer: Any = obstore.open_writer(
            connect(where.scheme, where.bucket).store,
            where.key,
            buffer_size=_PART_BYTES,
            max_concurrency=_PARTS_AT_ONCE,
        )
        self._path, self._size_bytes = path, 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes; waits if the upload is some parts behind."""
        self._size_bytes += memoryview(data).nbytes
        if self._writer is None:
            return
        try:
            self._writer.write(data)
        except Exception as error:
            _logger.debug("%s: the upload is given up: %s", self._path, first_line(error))
            self.cancel()

    def finish(self) -> bool:
        """End the upload. Returns whether the object is now in place."""
        if self._size_bytes <= _PART_BYTES:
            self.cancel()
        writer, self._writer = self._writer, None
        if writer is None:
            return False
        try:
            writer.close()
        except Exception as error:
            _logger.debug("%s: the upload has failed: %s", self._path, first_line(error))
            return False
        return True

    def cancel(self) -> None:
        """Remove the parts that were sent, unless the upload has ended."""
        writer, self._writer = self._writer, None
        if writer is not None:
            # A `with` block that ends with an error removes them.
            error = ConnectionAbortedError()
            with suppress(Exception):
                writer.__exit__(type(error), error, None)


def object_info(path: str) -> ObjectInfo:
    """Size and version of an object."""
    with _translated(path) as (store, key):
        meta = obstore.head(store, key)
    version = meta["e_tag"] or str(meta["last_modified"])
    return ObjectInfo(size_bytes=meta["size"], version=version)


def remove_object(path: str) -> None:
    """Delete an object, if it exists."""
    with suppress(FileNotFoundError), _translated(path) as (store, key):
        obstore.delete(store, key)


def list_objects(path: str) -> Iterator[Page]:
    """Objects below a prefix, page by page.

    Empty objects without a suffix are left out: most are not files but folder markers.
    """
    where = split(path)
    # obstore drops a slash at the beginning of a key, and it fails at other keys without a path.
    if where.scheme == "s3" and not where.key and with_retries(_has_rooted_keys, where):
        yield from _all_s3_pages(where, "")
        return
    last = ""
    try:
        for items in _pages(path, where):
            yield _page(where, [(item["path"], item["size"]) for item in items], [])
            last = items[-1]["path"]
    except InvalidPathError:
        if where.scheme != "s3":
            raise
        yield from _all_s3_pages(where, last)


def ask_bucket(path: str) -> None:
    """Ask for one key under a prefix, to see that the bucket answers."""
    with _translated(path) as (store, key):
        next(iter(obstore.list(store, key or None, chunk_size=1)), None)


def _pages(path: str, where: ObjectPath) -> Iterator[Any]:
    """Pages of a listing, which goes on where it was when a request failed."""
    last: str | None = None
    stream: Any = None

    def next_page() -> Any:
        nonlocal stream
        try:
            with _translated(path) as (store, key):
                if stream is None:
                    options: Any = {"offset": last, "chunk_size": _KEYS_PER_PAGE}
                    stream = iter(obstore.list(store, key or None, **options))
                return next(stream, None)
        except Exception:
            stream = None
            raise

    while page := with_retries(next_page):
        last = page[-1]["path"]
        yield page


def _has_rooted_keys(where: ObjectPath) -> bool:
    return bool(_s3_page(s3_file_system(), where.bucket, "/", "", 1)["KeyCount"])


def _all_s3_pages(where: ObjectPath, last: str) -> Iterator[Page]:
    """Pages of a listing by s3fs, which takes any key; begins after the key `last`."""
    remote = s3_file_system()
    prefix = f"{where.key}/" if where.key else ""
    while True:
        answer = with_retries(_s3_page, remote, where.bucket, prefix, last, _KEYS_PER_PAGE)
        items = [(item["Key"], item["Size"]) for item in answer.get("Contents", [])]
        usable = [item for item in items if is_usable_key(item[0].removesuffix("/"))]
        unusable = [key for key, _ in items if not is_usable_key(key.removesuffix("/"))]
        yield _page(where, [item for item in usable if not item[0].endswith("/")], unusable)
        if not answer["IsTruncated"]:
            return
        last = items[-1][0]


def _s3_page(remote: Any, bucket: str, prefix: str, last: str, max_keys: int) -> Any:
    where = {"Prefix": prefix, "StartAfter": last, "MaxKeys": max_keys}
    return call_s3(remote, "list_objects_v2", bucket, **where, **request_payer())


def call_s3(remote: Any, request: str, bucket: str, **arguments: Any) -> Any:
    """One request by s3fs, for what obstore cannot ask.

    Raises:
        ObjectStoreError: the storage's answer, or that there was none.
    """
    try:
        return remote.call_s3(request, Bucket=bucket, **arguments)
    except (OSError, HTTPClientError) as error:
        status, code, answer = 0, "", error.__cause__
        if isinstance(answer, ClientError):
            status = int(answer.response["ResponseMetadata"]["HTTPStatusCode"])
            code = answer.response["Error"].get("Code", "")
        raise _error(f"s3://{bucket}", answer or error, status, code) from error


def _page(where: ObjectPath, items: list[tuple[str, int]], unusable: list[str]) -> Page:
    # A folder marker is an empty object named after it with a slash, which obstore drops.
    files = [(key, size) for key, size in items if size or "." in key.rpartition("/")[2]]
    return Page(
        paths=[f"{where.scheme}://{where.bucket}/{key}" for key, _ in files],
        sizes_bytes=[size for _, size in files],
        unusable_keys=unusable,
    )


def _holds(path: str, content: IO[bytes]) -> bool:
    """Whether an object has this content; False if the storage does not say so."""
    try:
        if object_info(path).size_bytes != content.seek(0, io.SEEK_END):
            return False
        start = content.seek(0)
        while part := content.read(_PART_BYTES):
            if read_object_range(path, start, len(part)) != part:
                return False
            start += len(part)
    except (OSError, ObjectStoreError):
        return False
    return True


@contextmanager
def _translated(path: str) -> Iterator[tuple[Any, str]]:
    """The store and the key of a path; errors are raised as the module's docstring says."""
    where = split(path)
    connection = connect(where.scheme, where.bucket)
    try:
        yield connection.store, where.key
        note_answer(connection.endpoint)
    except InvalidPathError:
        raise
    except (FileNotFoundError, PermissionError, BaseError) as error:
        status = re.search(r"status code: (\d{3})\b", str(error))
        code = re.search(r"<Code>(\w+)</Code>", str(error))
        answer = _error(path, error, int(status[1]) if status else 0, code[1] if code else "")
        is_missing = isinstance(error, FileNotFoundError) or answer.status == 404
        if is_missing and answer.code in ("", "NoSuchKey", "BlobNotFound"):
            raise FileNotFoundError(path) from error
        raise answer from error


def _error(path: str, error: BaseException, status: int, code: str) -> ObjectStoreError:
    where = split(path)
    connection = connect(where.scheme, where.bucket)
    if status or isinstance(error, FileNotFoundError):
        note_answer(connection.endpoint)
    # What follows is for the developers of obstore.
    text = str(error).partition("\n\nDebug source")[0]
    return ObjectStoreError(
        path,
        status=status,
        code=code,
        text=" ".join(text.split()),
        endpoint=connection.endpoint,
        is_anonymous=connection.is_anonymous,
    )
