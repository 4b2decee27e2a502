"""Connections to buckets of S3, Google Cloud Storage and Azure, by obstore, and for S3 by s3fs.

In: a scheme and a bucket, and the user's variables and configuration files. For S3, botocore reads
these as the AWS command line does: endpoint, region, profile and credentials, from variables and
from `~/.aws`. obstore itself reads the variables of Google and Azure. Out: a store for obstore,
kept for later calls.
"""

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import botocore.session
import s3fs
from obstore.store import AzureStore, GCSStore, S3Store

from pipeline.storage.faults import ENDPOINT_VARIABLES

CONNECT_TIMEOUT_S = 10
READ_TIMEOUT_S = 20
"""Longest silence, not longest download."""
MAX_RETRIES = 2
RETRY_TIMEOUT_S = 15
"""No retry by obstore starts later than this after the first try, within each try of
`pipeline.storage.faults`."""

_DOWNLOAD_TIMEOUT = timedelta(hours=1)
_CREDENTIALS_LAST = timedelta(minutes=5)
"""Credentials are fetched again after this time from botocore, which refreshes temporary ones."""
_UNSIGNED = {
    "s3": "AWS_SKIP_SIGNATURE",
    "gs": "GOOGLE_SKIP_SIGNATURE",
    "az": "AZURE_SKIP_SIGNATURE",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Connection:
    """A connection to one bucket."""

    store: Any
    """For obstore's functions."""
    endpoint: str
    """The address, for messages."""
    is_anonymous: bool = False
    """No credentials were found, so requests are not signed."""


@lru_cache(maxsize=32)
def connect(scheme: str, bucket: str) -> Connection:
    """Connect to a bucket; sends no request.

    Raises:
        BotoCoreError, ValueError: the AWS configuration is invalid.
        obstore.exceptions.BaseError: that of Google or Azure is.
    """
    if scheme == "s3":
        return _connect_s3(bucket)
    endpoint = os.environ.get(ENDPOINT_VARIABLES[scheme], "")
    options = _options(endpoint)
    if _is_set(_UNSIGNED[scheme]):
        options["skip_signature"] = True
    if scheme == "gs":
        address: Any = {"base_url": endpoint} if endpoint else {}
        store: Any = GCSStore(bucket, **address, **options)
        return Connection(store=store, endpoint=endpoint or "Google Cloud Storage")
    return Connection(store=AzureStore(bucket, **options), endpoint=endpoint or "Azure")


def s3_file_system() -> Any:
    """s3fs, set up by the user's AWS variables and files, for requests that obstore cannot make."""
    session = botocore.session.get_session()
    remote = s3fs.S3FileSystem(
        anon=_is_set(_UNSIGNED["s3"]) or session.get_credentials() is None,
        client_kwargs={"region_name": _region(session)},
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": MAX_RETRIES, "mode": "standard"},
        },
        skip_instance_cache=True,  # it would go on with the settings of its first use
    )
    # Its retries would multiply with botocore's.
    remote.retries = 1
    return remote


def request_payer() -> dict[str, str]:
    """The argument of S3's requests where the reader of a bucket pays for them."""
    payer = os.environ.get("AWS_REQUEST_PAYER", "").lower()
    return {"RequestPayer": "requester"} if payer in ("requester", "true", "1") else {}


def _connect_s3(bucket: str) -> Connection:
    session = botocore.session.get_session()
    has_credentials = session.get_credentials() is not None
    meta = session.create_client("s3", region_name=_region(session)).meta
    address = urlsplit(meta.endpoint_url)
    is_aws = (address.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    style = (meta.config.s3 or {}).get("addressing_style", "auto")
    # Certificates of AWS do not cover buckets with a dot in their name.
    in_host = style == "virtual" or (style == "auto" and is_aws and "." not in bucket)
    endpoint = meta.endpoint_url
    if in_host:
        endpoint = address._replace(netloc=f"{bucket}.{address.netloc}").geturl()
    unsigned = _is_set(_UNSIGNED["s3"]) or not has_credentials
    signing: Any = (
        {"skip_signature": True}
        if unsigned
        else {"credential_provider": lambda: _credentials(session)}
    )
    store = S3Store(
        bucket,
        region=meta.region_name,
        endpoint=endpoint,
        virtual_hosted_style_request=in_host,
        # Not every server knows the request that deletes many keys, and we delete one at a time.
        disable_bulk_delete=True,
        request_payer=bool(request_payer()),
        **signing,
        **_options(endpoint),
    )
    return Connection(
        store=store,
        endpoint="AWS" if is_aws else meta.endpoint_url,
        is_anonymous=not has_credentials,
    )


def _region(session: Any) -> str:
    return session.get_config_variable("region") or "us-east-1"


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "on")


def _options(endpoint: str) -> Any:
    return {
        "client_options": {
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
            "timeout": _DOWNLOAD_TIMEOUT,
        },
        "retry_config": {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S),
        },
    }


def _credentials(session: Any) -> Any:
    frozen = session.get_credentials().get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + _CREDENTIALS_LAST,
    }
