"""S3 through s3fs, as an fsspec file system: writes, metadata, and reads where obstore fails."""

from typing import Any

import fsspec

from pipeline.storage.obstore_reads import CONNECT_TIMEOUT_S, READ_TIMEOUT_S

MAX_ATTEMPTS = 2
"""Tries of a request by botocore, within each try of `pipeline.storage.faults`."""


def file_system() -> Any:
    """The file system, which keeps its connections."""
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
    # Retries of s3fs would multiply with botocore's, and for reads with its own second loop.
    remote.retries = 1
    return remote
