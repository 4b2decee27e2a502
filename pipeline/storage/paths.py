"""Paths, local or `s3://bucket/key`, as strings."""

from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import UserError


def is_remote(path: str) -> bool:
    """Whether the path is on S3 rather than local."""
    return path.startswith("s3://")


def absolute(path: str) -> str:
    """The absolute path, valid in other processes: Ray's workers have other working folders.

    Raises:
        UserError: the path is empty, has a scheme other than `s3://`, or names no bucket.
    """
    if not path:
        raise UserError(
            "", "empty path (is a shell variable unset?)", "give a local path or s3://bucket/key"
        )
    scheme = urlsplit(path).scheme if "://" in path else ""
    if scheme not in ("", "s3"):
        raise UserError(path, f"paths are local or s3://bucket/key, not {scheme}://")
    if not scheme:
        return str(Path(path).expanduser().resolve())
    if not urlsplit(path).netloc:
        raise UserError(path, "an s3:// path must name a bucket: s3://bucket/key")
    return path.rstrip("/")


def join(base: str, *parts: str) -> str:
    """The path of something inside a folder or under a prefix."""
    return "/".join([base.rstrip("/"), *parts])
