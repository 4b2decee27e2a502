"""Uploads that killed processes left unfinished in S3, where their parts cost as objects do.

In: a folder. Out: its unfinished uploads, and requests that remove them with their parts. Google
and Azure are not asked: there a lifecycle rule or the provider itself removes such parts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.storage.faults import LOST_UPLOAD, ObjectStoreError, explained, with_retries
from pipeline.storage.objects import call_s3
from pipeline.storage.paths import ObjectPath, split
from pipeline.storage.stores import connect, s3_file_system


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """An upload in parts that has neither been completed nor removed."""

    bucket: str
    key: str
    upload_id: str


def unfinished_uploads(folder: str) -> list[Upload]:
    """Uploads of objects in a folder of S3; also those that a living process is making.

    Raises:
        UserError: the storage refuses to list them, or does not answer.
    """
    where = split(folder)
    prefix = f"{where.key}/" if where.key else ""
    with explained(folder):
        uploads = list(_listed(where, prefix))
        # MinIO lists the uploads of a whole bucket or of one key, and none for any other prefix.
        if not uploads and prefix and connect("s3", where.bucket).endpoint != "AWS":
            uploads = [one for one in _listed(where, "") if one.key.startswith(prefix)]
    return uploads


def remove_upload(upload: Upload) -> None:
    """Remove an upload with its parts, if it exists; a process that is making it begins anew.

    Raises:
        UserError: the storage refuses, or does not answer.
    """
    with explained(f"s3://{upload.bucket}/{upload.key}"):
        with_retries(_remove, upload)


def _remove(upload: Upload) -> None:
    arguments = {"Key": upload.key, "UploadId": upload.upload_id}
    try:
        call_s3(s3_file_system(), "abort_multipart_upload", upload.bucket, **arguments)
    except ObjectStoreError as error:
        if error.code != LOST_UPLOAD:
            raise


def _listed(where: ObjectPath, prefix: str) -> Iterator[Upload]:
    remote, arguments = s3_file_system(), {"Prefix": prefix}
    while True:
        answer = with_retries(_page, remote, where.bucket, arguments)
        for item in answer.get("Uploads", []):
            yield Upload(bucket=where.bucket, key=item["Key"], upload_id=item["UploadId"])
        if not answer.get("IsTruncated"):
            return
        arguments["KeyMarker"] = answer["NextKeyMarker"]
        arguments["UploadIdMarker"] = answer["NextUploadIdMarker"]


def _page(remote: Any, bucket: str, arguments: dict[str, str]) -> Any:
    return call_s3(remote, "list_multipart_uploads", bucket, **arguments)
