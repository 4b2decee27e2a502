"""Large files are uploaded while they are written; an upload that fails begins anew."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from pipeline import storage
from pipeline.storage import faults, files, objects
from tests.support.errors import refused
from tests.support.faulty_proxy import Faults, FaultyProxy

PART_BYTES = 5 * 2**20
"""The least that S3 takes."""
PIECE = bytes(range(256)) * 12_000
"""Two make more than a part."""
NUM_PIECES = 5


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_PART_BYTES", PART_BYTES)


@pytest.fixture
def client(s3: str) -> Iterator[Any]:
    """boto3's, which goes to the server itself."""
    client = boto3.client("s3")
    yield client
    client.close()


@pytest.fixture(params=["memory", "disk"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the content is kept until its upload has ended."""
    limit = {"memory": 10**9, "disk": len(PIECE) // 2}[request.param]
    monkeypatch.setattr(files, "_KEPT_IN_MEMORY_BYTES", limit)


def held(client: Any, bucket: str) -> list[str]:
    """Keys of all unfinished uploads of a bucket."""
    answer = client.list_multipart_uploads(Bucket=bucket.removeprefix("s3://"))
    return [upload["Key"] for upload in answer.get("Uploads", [])]


@pytest.mark.usefixtures("kept")
def test_file_is_uploaded_while_it_grows(client: Any, s3: str) -> None:
    path = f"{s3}/data/file"
    storage.write_bytes(path, b"old")
    with storage.new_file(path) as file:
        for _ in range(NUM_PIECES):
            file.write(PIECE)
        assert held(client, s3) == ["data/file"]
        assert storage.read_bytes(path) == b"old"
        file.commit()
    assert storage.read_bytes(path) == PIECE * NUM_PIECES
    assert held(client, s3) == []


@pytest.mark.usefixtures("kept")
def test_nothing_is_left_of_an_upload_without_commit(client: Any, s3: str) -> None:
    with storage.new_file(f"{s3}/file") as file:
        for _ in range(NUM_PIECES):
            file.write(PIECE)
        assert held(client, s3) == ["file"]
    assert held(client, s3) == []
    assert storage.list_files(s3) == []


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("kind", ["denied", "lost answer", "reset in body"])
@pytest.mark.parametrize("request_", [r"^POST .*uploads", r"^PUT .*uploadId", r"^POST .*uploadId"])
def test_upload_that_fails_begins_anew(
    kind: str, request_: str, client: Any, s3: str, proxy: FaultyProxy
) -> None:
    proxy.spoil(Faults(share=1.0, kinds=(kind,), only=request_, at_most=1))
    with storage.new_file(f"{s3}/file") as file:
        for _ in range(NUM_PIECES):
            file.write(PIECE)
        file.commit()
    assert proxy.injected[kind] == 1
    assert storage.read_bytes(f"{s3}/file") == PIECE * NUM_PIECES
    is_lost = kind != "denied" and request_ == r"^POST .*uploads"
    assert held(client, s3) == (["file"] if is_lost else [])


@pytest.mark.usefixtures("kept")
def test_lasting_fault_is_told_when_the_file_is_committed(
    client: Any, s3: str, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "RETRY_AFTER_S", (0.1,))
    proxy.spoil(Faults(share=1.0, kinds=("denied",), only=r"^PUT .*uploadId"))
    with storage.new_file(f"{s3}/file") as file:
        for _ in range(NUM_PIECES):
            file.write(PIECE)
        with refused(f"{s3}/file", "AccessDenied", remedy="policy"):
            file.commit()
    assert held(client, s3) == []
    assert storage.list_files(s3) == []


def test_small_file_is_written_in_one_request(s3: str, proxy: FaultyProxy) -> None:
    proxy.spoil(Faults(share=1.0, kinds=("denied",), only=r"uploads|uploadId"))
    storage.write_bytes(f"{s3}/file", PIECE)
    assert storage.read_bytes(f"{s3}/file") == PIECE
    assert not proxy.injected


def test_full_folder_of_temporary_files_is_named(
    s3: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_KEPT_IN_MEMORY_BYTES", 2 * len(PIECE))
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/missing")
    with storage.new_file(f"{s3}/file") as file:
        file.write(PIECE)
        file.write(PIECE)
        with refused(f"{tmp_path}/missing", f"{s3}/file", remedy="TMPDIR"):
            file.write(PIECE)
    assert held(client, s3) == []
