"""Objects in buckets: lost answers, outages, odd keys; each through a faulty proxy to a server."""

import hashlib
import io
import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.errors import PassingError
from pipeline.storage import faults, table_file
from tests.support.errors import assert_names, refused
from tests.support.faulty_proxy import Faults, FaultyProxy

LARGE = bytes(range(256)) * 80_000
"""More than is written in one put."""


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "RETRY_AFTER_S", (0.1, 0.1))


@pytest.fixture
def put(s3: str) -> Iterator[Any]:
    """Writes an object of any key, behind the back of the code."""
    client = boto3.client("s3")
    bucket = s3.removeprefix("s3://")
    yield lambda key, body=b"x": client.put_object(Bucket=bucket, Key=key, Body=body)
    client.close()


# --- writes whose answer is lost -----------------------------------------------------------------


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("at_most", [1, 10**9])
@pytest.mark.parametrize("kind", ["lost answer", "cut", "reset in body"])
def test_upload_is_found_though_its_answer_is_lost(
    kind: str, at_most: int, s3: str, proxy: FaultyProxy
) -> None:
    path = f"{s3}/large"
    storage.write_bytes(path, b"old")
    proxy.spoil(Faults(share=1.0, kinds=(kind,), only=r"^POST .*uploadId=", at_most=at_most))
    storage.write_bytes(path, LARGE)
    assert proxy.injected[kind] >= 1
    assert storage.read_bytes(path) == LARGE


@pytest.mark.usefixtures("short_pauses")
def test_upload_that_did_not_happen_is_no_success(s3: str, proxy: FaultyProxy) -> None:
    path = f"{s3}/large"
    storage.write_bytes(path, LARGE[::-1])
    proxy.spoil(Faults(share=1.0, kinds=("reset",), only=r"^POST .*uploadId="))
    with refused(path, proxy.endpoint, type=PassingError):
        storage.write_bytes(path, LARGE)
    proxy.spoil(Faults())
    assert storage.read_bytes(path) == LARGE[::-1]


# --- open files ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_pauses")
def test_open_object_reads_as_a_local_file_does(
    s3: str, proxy: FaultyProxy, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(LARGE[:1000])
    storage.write_bytes(f"{s3}/file", LARGE[:1000])
    proxy.spoil(Faults(share=0.5, kinds=("cut", "slow down", "reset"), seed=3))
    results = []
    for path in (f"{tmp_path}/file", f"{s3}/file"):
        with storage.open_binary(path) as file:
            results.append(
                [
                    file.read(3),
                    file.tell(),
                    file.seek(-5, io.SEEK_END),
                    file.read(),
                    file.read(),
                    file.seek(2000),
                    file.read(10),
                    file.seek(10),
                    file.seek(5, io.SEEK_CUR),
                    file.read(1),
                    file.seekable(),
                ]
            )
    assert results[0] == results[1]
    assert proxy.injected.total() >= 2


# --- keys and paths ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["a//b", "/a", "a/../b", "./a", "a/.", "a\nb", "a//"])
def test_key_that_clients_resolve_differently_is_refused(key: str) -> None:
    path = f"s3://bucket/{key}"
    shown = path.replace("\n", "\\n")
    with refused(shown, "segments", remedy="rename"):
        storage.absolute(path)
    for operation in (storage.read_bytes, storage.exists, storage.remove, storage.list_files):
        with refused(shown, "segments"):
            operation(path)
    with refused(shown, "segments"):
        storage.write_bytes(path, b"")


@pytest.mark.parametrize("key", ["a b#?&+%20", "...", "a/.hidden", "ü/ö", "a..b/c.", "back\\slash"])
def test_odd_key_is_kept_as_it_is(key: str, s3: str, put: Any) -> None:
    put(key, b"content")
    path = f"{s3}/{key}"
    assert storage.absolute(path) == path
    assert storage.list_files(s3) == [path]
    assert storage.read_bytes(path) == b"content"
    storage.write_bytes(path, b"new")
    assert storage.read_range(path, 1, 1) == b"e"
    storage.remove(path)
    assert storage.list_files(s3) == []


@pytest.mark.parametrize("odd", ["clips/dog//x", "clips/../x", "clips/\x01", "/clips/x", "//"])
def test_listing_leaves_out_keys_without_a_path(
    odd: str, s3: str, put: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"clips/dog/{number}.wav" for number in range(5)]
    for name in [*names, odd]:
        put(name)
    put("clips/", b"")
    is_above = odd.startswith("/")
    with caplog.at_level(logging.WARNING):
        assert storage.list_files(s3) == [f"{s3}/{name}" for name in names]
        assert len(caplog.messages) == 1
        assert_names(caplog.messages[0], 1)
        assert repr(odd)[1:-1] in caplog.messages[0].replace("\\\\", "\\")
        assert storage.list_files(f"{s3}/clips") == [f"{s3}/{name}" for name in names]
    assert len(caplog.messages) == (1 if is_above else 2)


@pytest.mark.slow
def test_listing_of_many_keys_goes_on_after_an_odd_one(
    s3: str, put: Any, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{number:04d}" for number in range(1200)]
    for name in names:
        put(name)
    put("1100//odd")
    assert storage.list_files(s3) == [f"{s3}/{name}" for name in names]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("name", "shown", "fault"),
    [
        (b"caf\xe9.wav", r"caf\udce9.wav", "UTF-8"),
        (b"a\tb.wav", r"a\tb.wav", "control"),
        (b"a\nb.wav", r"a\nb.wav", "control"),
        (b"a\x1b[31m\x7f.wav", r"a\x1b[31m\x7f.wav", "control"),
    ],
)
@pytest.mark.parametrize("is_folder", [False, True])
def test_local_names_that_cannot_be_used_are_left_out(
    name: bytes,
    shown: str,
    fault: str,
    is_folder: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a").write_bytes(b"")
    odd = tmp_path / name.decode(errors="surrogateescape")
    if is_folder:
        odd.mkdir()
        (odd / "1").write_bytes(b"")
        (odd / "2").write_bytes(b"")
    else:
        odd.write_bytes(b"")
    assert storage.list_files(str(tmp_path)) == [f"{tmp_path}/a"]
    [message] = caplog.messages
    assert_names(message, tmp_path, 2 if is_folder else 1)
    assert shown in message
    with refused(shown, fault, remedy="rename"):
        storage.absolute(str(odd))


# --- tables that are read in pieces ---------------------------------------------------------------


def test_table_in_a_bucket_is_fetched_once_and_read_in_pieces(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    table = pa.table({"number": np.random.default_rng(0).integers(2**60, size=2000)})
    data = storage.encode_table(table, 100)
    storage.write_bytes(f"{s3}/table", data)
    source, sha256 = storage.open_whole(f"{s3}/table")
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert list(tmp_path.iterdir()) == []
    storage.remove(f"{s3}/table")
    file = storage.TableFile(source, table.schema, where="table", remedy="")
    assert file.read().equals(table)
    with pytest.raises(FileNotFoundError):
        storage.open_whole(f"{s3}/table")


def test_full_folder_of_temporary_files_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_bytes(f"{s3}/table", b"content")
    full = partial(Path("/dev/full").open, "wb", buffering=0)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: full())
    with refused(tempfile.gettempdir(), f"{s3}/table", "No space left", remedy="TMPDIR"):
        storage.open_whole(f"{s3}/table")
