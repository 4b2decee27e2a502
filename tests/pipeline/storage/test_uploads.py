"""Unfinished uploads in S3: those of killed processes are found, and removed with their parts."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

import ray_job
from pipeline import storage
from pipeline.dataset import unfinished_uploads
from pipeline.manifest.manifest import from_clips
from pipeline.storage import faults, uploads
from tests.support.audio import write_clips
from tests.support.errors import refused
from tests.support.faulty_proxy import Faults, FaultyProxy
from tests.support.preparation import LABELS
from tests.support.without_ray import do_without_ray, prepare

LARGE = bytes(range(256)) * 200_000
"""Is written in four parts."""
WRITE = """
import sys
from pipeline import storage

storage.write_bytes(sys.argv[1], bytes(51_200_000))
"""


@pytest.fixture
def client(s3: str) -> Iterator[Any]:
    """boto3's, which goes to the server itself."""
    client = boto3.client("s3")
    yield client
    client.close()


def begin(client: Any, path: str) -> None:
    """Begin an upload with one part, and leave it."""
    bucket, _, key = path.removeprefix("s3://").partition("/")
    where = {"Bucket": bucket, "Key": key}
    upload_id = client.create_multipart_upload(**where)["UploadId"]
    client.upload_part(**where, UploadId=upload_id, PartNumber=1, Body=b"x" * 6_000_000)


def wait_for_a_part(proxy: FaultyProxy) -> None:
    while not proxy.injected["stall"]:
        time.sleep(0.05)


def held(client: Any, bucket: str) -> list[str]:
    """Keys of all unfinished uploads of a bucket."""
    answer = client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    return [upload["Key"] for upload in answer.get("Uploads", [])]


def test_killed_upload_is_found_and_removed(client: Any, s3: str, proxy: FaultyProxy) -> None:
    path = f"{s3}/data/shards/train-00000.tar"
    proxy.spoil(Faults(share=1.0, kinds=("stall",), stall_s=30, only=r"^PUT .*uploadId="))
    with subprocess.Popen([sys.executable, "-c", WRITE, path]) as writer:
        wait_for_a_part(proxy)
        writer.kill()
    assert not storage.exists(path)
    found = uploads.unfinished_uploads(f"{s3}/data")
    assert [(one.bucket, one.key) for one in found] == [
        (s3.removeprefix("s3://"), "data/shards/train-00000.tar")
    ]
    assert unfinished_uploads.remove_all(f"{s3}/data") == 1
    assert held(client, s3) == []
    uploads.remove_upload(found[0])  # another has removed it meanwhile


def test_uploads_of_other_folders_stay(client: Any, s3: str) -> None:
    for key in ("data/index.parquet", "data/shards/a.tar", "data-2/index.parquet", "other"):
        begin(client, f"{s3}/{key}")
    assert unfinished_uploads.remove_all(f"{s3}/data") == 2
    assert held(client, s3) == ["data-2/index.parquet", "other"]
    assert unfinished_uploads.remove_all(s3) == 2
    assert held(client, s3) == []


def test_living_writer_repeats_an_upload_that_is_removed(
    client: Any, s3: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "RETRY_AFTER_S", (0.1, 0.1))
    path = f"{s3}/data/large"
    proxy.spoil(Faults(share=1.0, kinds=("stall",), stall_s=3, only=r"^PUT .*uploadId=", at_most=1))
    writer = threading.Thread(target=storage.write_bytes, args=(path, LARGE))
    writer.start()
    wait_for_a_part(proxy)
    assert unfinished_uploads.remove_all(f"{s3}/data") == 1
    writer.join()
    assert storage.read_bytes(path) == LARGE
    assert held(client, s3) == []


class PagedServer:
    """Lists uploads two at a time, and none for a prefix that is no key, as MinIO does."""

    keys = ("a", "data/1", "data/2", "data/3", "data/4", "e")

    def call_s3(self, request: str, **arguments: Any) -> dict[str, Any]:
        assert request == "list_multipart_uploads"
        start = int(arguments.get("UploadIdMarker", -1)) + 1
        keys = [key for key in self.keys if key == arguments["Prefix"] or not arguments["Prefix"]]
        page = list(enumerate(keys))[start : start + 2]
        is_last = start + 2 >= len(keys)
        marker = {} if is_last else {"NextKeyMarker": "", "NextUploadIdMarker": str(start + 1)}
        listed = [{"Key": key, "UploadId": str(number)} for number, key in page]
        return {"Uploads": listed, "IsTruncated": not is_last, **marker}


def test_all_pages_are_read_though_the_server_knows_no_prefix(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "s3_file_system", PagedServer)
    found = uploads.unfinished_uploads(f"{s3}/data")
    assert [one.key for one in found] == ["data/1", "data/2", "data/3", "data/4"]
    assert len(uploads.unfinished_uploads(s3)) == 6


# --- the step ------------------------------------------------------------------------------------


@pytest.fixture
def prepared(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set in S3."""
    path = f"{s3}/data"
    prepare(from_clips(write_clips(tmp_path, 4), LABELS), path)
    do_without_ray(monkeypatch)
    return path


def test_verify_reports_unfinished_uploads_and_cleans(
    client: Any, prepared: str, s3: str, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(client, f"{prepared}/shards/train-00000.tar")
    assert ray_job.main(["verify", prepared]) == 0
    assert "1 unfinished upload " in capsys.readouterr().err
    assert held(client, s3) != []
    assert ray_job.main(["verify", prepared, "--clean"]) == 0
    assert "removed 1 unfinished upload\n" in capsys.readouterr().err
    assert held(client, s3) == []
    assert ray_job.main(["verify", prepared]) == 0
    assert "unfinished" not in capsys.readouterr().err


def test_uploads_of_a_data_set_without_a_card_are_removed(client: Any, s3: str) -> None:
    """As a `prepare` leaves it that is killed at its first shard."""
    begin(client, f"{s3}/data/shards/train-00000.tar")
    assert ray_job.main(["verify", f"{s3}/data", "--clean"]) == 1
    assert held(client, s3) == []


def test_verify_says_that_it_may_not_list_uploads(
    prepared: str, proxy: FaultyProxy, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy.spoil(Faults(share=1.0, kinds=("denied",), only=r"^GET .*[?&]uploads"))
    assert ray_job.main(["verify", prepared]) == 0
    assert "AccessDenied" in capsys.readouterr().err
    assert ray_job.main(["verify", prepared, "--clean"]) == 1
    assert "AccessDenied" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["gs://bucket/data", "az://container/data", "/data"])
def test_other_storages_are_not_cleaned(path: str) -> None:
    with refused(path, "--clean", remedy=True):
        unfinished_uploads.check_is_cleanable(path)
