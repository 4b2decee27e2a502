"""Paths, local or of an object in a bucket (`s3://bucket/key`, `gs://`, `az://`), as strings."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pipeline.errors import UserError, first_line

SCHEMES = ("s3", "gs", "az")
"""Of Amazon S3 and what speaks its protocol, Google Cloud Storage, and Azure Blob Storage."""

_REMOTE = tuple(f"{scheme}://" for scheme in SCHEMES)
_BUCKET = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]*")
CONTROL = r"[\x00-\x1f\x7f]"
"""What no path may hold: messages and tables have a line for each."""
UNUSABLE_KEY = rf"(^|/)(\.{{0,2}})(/|$)|{CONTROL}"
"""What no key may hold: empty, `.` and `..` segments, which clients resolve in different ways, and
control characters."""
_CONTROL = re.compile(CONTROL)
_UNUSABLE_KEY = re.compile(UNUSABLE_KEY)


class UnusableKeyError(ValueError):
    """A key that no object of ours may have."""


class ObjectPath(NamedTuple):
    """The parts of a remote path."""

    scheme: str
    bucket: str
    key: str
    """Without a slash at its end; empty for the whole bucket."""


def is_remote(path: str) -> bool:
    """Whether the path is in a bucket rather than local."""
    return path.startswith(_REMOTE)


def is_utf8(name: str) -> bool:
    """Whether a name is text; the system hands on other bytes as lone surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_usable_local(path: str) -> bool:
    """Whether a local path is text without control characters."""
    return not _CONTROL.search(path) and is_utf8(path)


def is_usable_key(key: str) -> bool:
    """Whether an object of this key can be read and written by its path."""
    return not _UNUSABLE_KEY.search(key) and is_utf8(key)


def split(path: str) -> ObjectPath:
    """The parts of a remote path.

    Raises:
        UserError: the bucket or the key cannot be used.
    """
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UserError(path, f"the path must name a bucket: {scheme}://bucket/key")
    if not _BUCKET.fullmatch(bucket):
        raise UserError(path, f"Invalid bucket name: {bucket!r}", "check the path")
    key = key[:-1] if key.endswith("/") else key
    if key and not is_usable_key(key):
        raise UserError(
            shown(path),
            "keys with empty, . or .. segments or with control characters cannot be used",
            f"remove or rename them, such as {scheme}://{bucket}/key in place of "
            f"{scheme}://{bucket}//key",
        ) from UnusableKeyError(key)
    return ObjectPath(scheme, bucket, key)


def absolute(path: str) -> str:
    """The absolute path, valid in other processes: Ray's workers have other working folders.

    Raises:
        UserError: the path is empty, not text or has control characters, has an unknown scheme,
            names no bucket, or a key that cannot be used; or links to it go in a circle.
    """
    if not path:
        raise UserError(
            "", "empty path (is a shell variable unset?)", "give a local path or s3://bucket/key"
        )
    if is_remote(path):
        scheme, bucket, key = split(path)
        return f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme:
        known = ", ".join(f"{name}://bucket/key" for name in SCHEMES)
        raise UserError(path, f"paths are local or {known}, not {scheme}://")
    try:
        resolved = str(Path(path).expanduser().resolve())
    except (OSError, RuntimeError) as error:  # links in a circle, or ~ of an unknown user
        raise UserError(shown(path), first_line(error), "give another path") from error
    if not is_usable_local(resolved):
        fault = "has control characters" if is_utf8(resolved) else "is not UTF-8"
        raise UserError(shown(resolved), f"the path {fault}", "rename it")
    return resolved


def shown(path: str) -> str:
    """The path in one line of text."""
    text = path.encode(errors="backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def join(base: str, *parts: str) -> str:
    """The path of something inside a folder or under a prefix."""
    return "/".join([base.rstrip("/"), *parts])
