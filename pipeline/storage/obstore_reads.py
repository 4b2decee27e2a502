"""Bulk access to S3 through obstore: thousands of small reads, listings of millions of keys.

Everything else goes through s3fs, where a read costs more CPU time than computing a fbank.
Variables and credentials are the same. If a request fails for any reason but a missing key,
`pipeline.storage` repeats it through s3fs and explains the error.
"""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import obstore
from botocore.exceptions import NoCredentialsError
from obstore.exceptions import GenericError
from obstore.store import S3Store

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 20
"""Longest silence, not longest download."""
MAX_RETRIES = 4
RETRY_TIMEOUT_S = 15
"""No retry starts later than this after the first try of a request."""

_KEYS_PER_PAGE = 1000
_DOWNLOAD_TIMEOUT = timedelta(hours=1)
_CREDENTIALS_LAST = timedelta(minutes=5)
"""Credentials are fetched again after this time from botocore, which refreshes temporary ones."""


def read_object(uri: str, check_size: Callable[[int], None]) -> bytes:
    """The whole content. Raises FileNotFoundError, or obstore's errors.

    Args:
        uri: `s3://bucket/key`.
        check_size: called with the size in bytes before the content is read; may raise.
    """
    bucket, key = _split(uri)
    response = obstore.get(_store(bucket), key)
    check_size(response.meta["size"])
    return bytes(response.bytes())


def read_object_range(uri: str, offset_bytes: int, size_bytes: int) -> bytes:
    """`size_bytes` bytes, or fewer if the object ends earlier."""
    bucket, key = _split(uri)
    return bytes(obstore.get_range(_store(bucket), key, start=offset_bytes, length=size_bytes))


def list_objects(uri: str) -> Iterator[tuple[list[str], list[int]]]:
    """Keys below a prefix, page by page: full URIs, and sizes in bytes.

    Empty objects without a suffix are left out: most are not files but folder markers.
    """
    bucket, prefix = _split(uri)
    for page in _pages(_store(bucket), prefix.rstrip("/")):
        # A folder marker is an empty object named after it with a slash, which is lost here.
        files = [item for item in page if item["size"] or "." in item["path"].rpartition("/")[2]]
        paths = [f"s3://{bucket}/{item['path']}" for item in files]
        yield paths, [item["size"] for item in files]


def _pages(store: S3Store, prefix: str) -> Iterator[Any]:
    """Pages of a listing; truncated pages, which obstore does not retry, are requested again."""
    last, failures = None, 0
    while True:
        try:
            for page in obstore.list(store, prefix, offset=last, chunk_size=_KEYS_PER_PAGE):
                yield page
                last, failures = page[-1]["path"], 0
            return
        except GenericError:
            failures += 1
            if failures > MAX_RETRIES:
                raise


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _store(bucket: str) -> S3Store:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return _connect(bucket, endpoint)


@lru_cache(maxsize=32)
def _connect(bucket: str, endpoint: str | None) -> S3Store:
    if endpoint and urlsplit(endpoint).scheme not in ("http", "https"):
        raise ValueError(f"Invalid endpoint: {endpoint}")
    session = botocore.session.get_session()
    address: Any = {"endpoint": endpoint} if endpoint else {}
    return S3Store(
        bucket,
        region=session.get_config_variable("region") or "us-east-1",
        **address,
        virtual_hosted_style_request=endpoint is None,
        credential_provider=lambda: _credentials(session),
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
            "timeout": _DOWNLOAD_TIMEOUT,
        },
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        },
    )


def _credentials(session: Any) -> Any:
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    frozen = credentials.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
    }
