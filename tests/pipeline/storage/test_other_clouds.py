"""Paths of Google Cloud Storage and Azure: what S3 does, on their servers."""

import base64
import hmac
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.dataset.prepared import open_dataset
from pipeline.errors import UserError
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.layouts.folder import read
from pipeline.manifest.layouts.options import SourceOptions
from tests.conftest import forget_clients
from tests.support.audio import write_clips
from tests.support.errors import assert_names, refused
from tests.support.fake_gcs import fake_gcs
from tests.support.ray_head import free_ports
from tests.support.without_ray import prepare

PROJECT = Path(__file__).parents[3]
AZURITE = PROJECT / "build/azurite/node_modules/.bin/azurite-blob"
ACCOUNT, KEY = "devstoreaccount1", "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
LARGE = bytes(range(256)) * 80_000


@pytest.fixture
def gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket, `gs://lab`."""
    with fake_gcs("lab") as server:
        monkeypatch.setenv("GOOGLE_BASE_URL", server.endpoint)
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", _key_for(server.endpoint))
        forget_clients()
        yield "gs://lab"
        forget_clients()


def _key_for(endpoint: str) -> str:
    """A service account's key that is used without asking Google for a token."""
    names = ("client_email", "private_key", "private_key_id")
    return json.dumps({"gcs_base_url": endpoint, "disable_oauth": True, **dict.fromkeys(names, "")})


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a local Azure Blob Storage."""
    if not (AZURITE.exists() and shutil.which("node")):
        pytest.skip("needs azurite: sh tests/install_azurite.sh")
    [port] = free_ports(1)
    folder = tmp_path_factory.mktemp("azurite")
    command = [
        str(AZURITE),
        "--silent",
        "--disableTelemetry",
        "--skipApiVersionCheck",
        "--location",
        str(folder),
    ]
    with subprocess.Popen(
        [*command, "--blobHost", "127.0.0.1", "--blobPort", str(port)],
        env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
        stdout=subprocess.DEVNULL,
    ) as server:
        deadline = time.monotonic() + 240
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                break
            assert server.poll() is None, "azurite ended at once"
            assert time.monotonic() < deadline, "azurite does not answer"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
        server.terminate()


@pytest.fixture
def az(azurite: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty container, `az://...`."""
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", azurite)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    forget_clients()
    name = f"test-{time.time_ns()}"
    _make_container(azurite, name)
    yield f"az://{name}"
    forget_clients()


def _make_container(endpoint: str, name: str) -> None:
    """Send the request that creates a container, which obstore does not know."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items())]
    text = "\n".join([*lines, f"/{ACCOUNT}/{ACCOUNT}/{name}", "restype:container"])
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256"))
    request = urllib.request.Request(
        f"{endpoint}/{name}?restype=container",
        method="PUT",
        headers={**headers, "Authorization": f"SharedKey {ACCOUNT}:{signature.decode()}"},
    )
    urllib.request.urlopen(request).close()


@pytest.fixture(params=["gs", "az"])
def bucket(request: pytest.FixtureRequest) -> str:
    """An empty bucket of each kind."""
    path: str = request.getfixturevalue(request.param)
    return path


def test_files_are_written_read_listed_and_removed(bucket: str) -> None:
    path = f"{bucket}/some/ümlaut #1?%20 .bin"
    assert not storage.exists(path)
    storage.check_bucket(bucket)
    for content in (b"first", b"0123456789", LARGE):
        storage.write_bytes(path, content)
        assert storage.exists(path)
        assert storage.read_bytes(path) == content
    assert storage.read_range(path, 3, 4) == LARGE[3:7]
    with storage.open_binary(path) as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == LARGE[-4:]
    with pytest.raises(EOFError):
        storage.read_range(path, len(LARGE), 1)
    storage.write_bytes(f"{bucket}/some-beside/x", b"")
    assert storage.list_files(f"{bucket}/some/") == [path]
    assert storage.file_sizes(f"{bucket}/some") == {path: len(LARGE)}
    storage.remove(path)
    storage.remove(path)
    assert not storage.holds_files(f"{bucket}/some")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(path)
    with pytest.raises(FileNotFoundError):
        storage.open_binary(path)


def test_large_file_appears_only_when_committed(bucket: str) -> None:
    path = f"{bucket}/large"
    for is_committed in (False, True):
        with storage.new_file(path) as file:
            file.write(LARGE)
            file.write(LARGE)
            assert not storage.exists(path)
            if is_committed:
                file.commit()
    assert storage.read_bytes(path) == 2 * LARGE


def test_missing_bucket_is_one_line(bucket: str) -> None:
    missing = f"{bucket.partition('://')[0]}://no-such-bucket"
    for operation in (
        lambda: storage.check_bucket(missing),
        lambda: storage.write_bytes(f"{missing}/key", b"x"),
        lambda: storage.read_bytes(f"{missing}/key"),
        lambda: storage.list_files(missing),
    ):
        with pytest.raises(UserError) as caught:
            operation()
        assert str(caught.value).startswith(missing)
        assert_names(str(caught.value), "bucket", "exist")


def test_refused_credentials_are_one_line(az: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY[::-1].replace("=", "A"))
    forget_clients()
    with refused(az, "access refused", remedy="AZURE_STORAGE_ACCOUNT_KEY"):
        storage.check_bucket(az)


def test_missing_account_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    forget_clients()
    with pytest.raises(UserError) as caught:
        storage.check_bucket("az://lab")
    assert_names(str(caught.value), "az://lab", "docs/storage.md")


def test_data_set_is_the_same_as_a_local_one(bucket: str, tmp_path: Path) -> None:
    for folder in (str(tmp_path), bucket):
        for clip in write_clips(tmp_path / "audio", 6):
            path = f"{folder}/sounds/{clip.labels[0]}/{Path(clip.uri).name}"
            storage.write_bytes(path, Path(clip.uri).read_bytes())
        write_manifest(f"{folder}/m.parquet", read(f"{folder}/sounds", SourceOptions()))
        prepare(read_manifest(f"{folder}/m.parquet"), f"{folder}/out", max_reject_share=0.0)
    ids = [open_dataset(f"{folder}/out").index["id"] for folder in (str(tmp_path), bucket)]
    assert ids[0].equals(ids[1])
    tars = [
        [storage.read_bytes(path) for path in storage.list_files(f"{folder}/out/shards")]
        for folder in (str(tmp_path), bucket)
    ]
    assert tars[0] == tars[1]
    assert len(tars[0]) >= 1
