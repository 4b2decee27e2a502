"""Downloads from a local server: resumed, restarted, checked, and unpacked safely."""

import hashlib
import importlib.util
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.manifest import download
from pipeline.manifest.public_datasets import DATASETS, PublicDataset
from ray_job import main
from tests.support.errors import refused

CLIPS = {f"audio/{i}.wav": bytes([i]) * 100_000 for i in range(5)}


@dataclass
class Server:
    """A file on an HTTP server, and what it was asked for."""

    url: str = ""
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"first"'})
    ranges: bool = True
    tells_length: bool = True
    status: int = 200
    break_after: list[int] = field(default_factory=list)
    """Of each of the next answers, how many bytes come before the connection ends."""
    asked: list[str | None] = field(default_factory=list)
    """The ranges of the requests."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self, state)

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setattr("time.sleep", lambda _: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}/data.archive"
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def answer(request: BaseHTTPRequestHandler, state: Server) -> None:
    wanted = request.headers.get("Range")
    state.asked.append(wanted)
    start = 0
    if wanted:
        first_byte = re.fullmatch(r"bytes=(\d+)-", wanted)
        assert first_byte is not None
        start = int(first_byte[1])
    validators = (state.headers.get("ETag"), state.headers.get("Last-Modified"))
    if not state.ranges or request.headers.get("If-Range") not in validators:
        start = 0
    if start >= len(state.content) or state.status != 200:
        request.send_error(state.status if state.status != 200 else 416)
        return
    body = state.content[start:]
    request.send_response(206 if start else 200)
    for name, value in state.headers.items():
        request.send_header(name, value)
    if start:
        last = len(state.content) - 1
        request.send_header("Content-Range", f"bytes {start}-{last}/{len(state.content)}")
    if state.tells_length:
        request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body[: state.break_after.pop(0)] if state.break_after else body)


def zip_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tar_gz_bytes(members: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ZIP = zip_bytes({f"ESC-50-master/{name}": content for name, content in CLIPS.items()})
TAR = tar_gz_bytes({f"./{name}": content for name, content in CLIPS.items()})


def dataset(server: Server, content: bytes, *, sha256: str | None = None) -> PublicDataset:
    server.content = content
    return PublicDataset(
        url=server.url, approximate_bytes=1_000_000, clips="audio/*.wav", num_clips=5, sha256=sha256
    )


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("content", [ZIP, TAR])
def test_archive_is_fetched_checked_and_unpacked_once(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    source = dataset(server, content, sha256=hashlib.sha256(content).hexdigest())
    output = tmp_path / "new" / "data"
    assert download.download(source, str(output))
    assert files(tmp_path) == {f"new/data/{name}": content for name, content in CLIPS.items()}
    assert not download.download(source, str(output))
    assert server.asked == [None]


def test_broken_transfer_resumes(tmp_path: Path, server: Server) -> None:
    chunk = download.CHUNK_BYTES
    server.break_after = [2 * chunk, chunk]
    assert download.download(dataset(server, ZIP), str(tmp_path / "data"))
    assert server.asked == [None, f"bytes={2 * chunk}-", f"bytes={3 * chunk}-"]
    assert files(tmp_path / "data") == CLIPS


def test_later_run_resumes_the_transfer(tmp_path: Path, server: Server) -> None:
    server.break_after = [download.CHUNK_BYTES] * download.ATTEMPTS
    source = dataset(server, ZIP)
    with refused(server.url, "broke", remedy="resume"):
        download.download(source, str(tmp_path / "data"))
    assert len(server.asked) == download.ATTEMPTS
    assert download.download(source, str(tmp_path / "data"))
    assert server.asked[-1] == f"bytes={download.CHUNK_BYTES * download.ATTEMPTS}-"
    assert files(tmp_path) == {f"data/{name}": content for name, content in CLIPS.items()}


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"second"'},
        {"ETag": 'W/"first"'},
        {"Last-Modified": "Tue, 02 Jan 2024 00:00:00 GMT"},
    ],
)
def test_changed_file_is_fetched_from_its_start(
    tmp_path: Path, server: Server, headers: dict[str, str]
) -> None:
    source = dataset(server, bytes(len(ZIP)))
    server.break_after = [download.CHUNK_BYTES] * download.ATTEMPTS
    with refused(server.url, "broke", remedy="resume"):
        download.download(source, str(tmp_path / "data"))
    server.headers, server.content, server.break_after = headers, ZIP, []
    assert download.download(source, str(tmp_path / "data"))
    assert files(tmp_path / "data") == CLIPS


def test_last_modified_identifies_a_file_without_strong_etag(
    tmp_path: Path, server: Server
) -> None:
    server.headers = {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
    server.break_after = [download.CHUNK_BYTES]
    assert download.download(dataset(server, ZIP), str(tmp_path / "data"))
    assert server.asked == [None, f"bytes={download.CHUNK_BYTES}-"]


@pytest.mark.parametrize("change", [{"headers": {}}, {"ranges": False}])
def test_file_is_fetched_from_its_start_if_the_server_cannot_resume(
    tmp_path: Path, server: Server, change: dict[str, Any]
) -> None:
    for name, value in change.items():
        setattr(server, name, value)
    server.break_after = [download.CHUNK_BYTES]
    assert download.download(dataset(server, ZIP), str(tmp_path / "data"))
    assert files(tmp_path / "data") == CLIPS


def test_partial_file_of_full_length_is_fetched_again(tmp_path: Path, server: Server) -> None:
    (tmp_path / "data.archive.part").write_bytes(bytes(len(ZIP)))
    (tmp_path / "data.archive.etag").write_text('"first"')
    assert download.download(dataset(server, ZIP), str(tmp_path / "data"))
    assert server.asked == [f"bytes={len(ZIP)}-", None]


def test_length_of_the_file_is_optional(tmp_path: Path, server: Server) -> None:
    server.tells_length = False
    assert download.download(dataset(server, ZIP), str(tmp_path / "data"))
    server.content, server.headers = ZIP[:-1000], {}
    with refused(server.url, "archive", "gzip", remedy="--url"):
        download.download(dataset(server, ZIP[:-1000]), str(tmp_path / "other"))


def test_wrong_checksum_is_refused(tmp_path: Path, server: Server) -> None:
    source = dataset(server, ZIP, sha256="0" * 64)
    with refused(server.url, hashlib.sha256(ZIP).hexdigest(), "0" * 64, remedy="--url"):
        download.download(source, str(tmp_path / "data"))
    assert files(tmp_path) == {}


@pytest.mark.parametrize(
    "content", [ZIP[:-1000], ZIP[1000:], TAR[:-100], TAR[: len(TAR) // 2], b"no"]
)
def test_broken_archive_is_refused_and_fetched_again(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    source = dataset(server, content)
    with refused(server.url, "archive", remedy="--url"):
        download.download(source, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    server.content = ZIP
    assert download.download(source, str(tmp_path / "data"))
    assert files(tmp_path) == {f"data/{name}": content for name, content in CLIPS.items()}


def test_zip_with_a_changed_byte_is_refused(tmp_path: Path, server: Server) -> None:
    content = bytearray(ZIP)
    content[len(ZIP) // 2] ^= 1
    with refused(server.url, "archive", "CRC-32", remedy="--url"):
        download.download(dataset(server, bytes(content)), str(tmp_path / "data"))


@pytest.mark.parametrize("name", ["../evil.wav", "audio/../../evil.wav", "/tmp/ast-ray-evil.wav"])
@pytest.mark.parametrize("make", [zip_bytes, tar_gz_bytes])
def test_archive_members_outside_the_folder_are_refused(
    tmp_path: Path, server: Server, name: str, make: Any
) -> None:
    source = dataset(server, make({**CLIPS, name: b"evil"}))
    with refused(server.url, "outside", repr(name), remedy="--url"):
        download.download(source, str(tmp_path / "in" / "data"))
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/tmp/ast-ray-evil.wav").exists()
    assert not (tmp_path / "in" / "data").exists()


def test_links_in_an_archive_are_refused(tmp_path: Path, server: Server) -> None:
    content = tar_gz_bytes({"away/evil.wav": b"evil"}, links={"away": str(tmp_path)})
    with refused(server.url, "'away'", "neither"):
        download.download(dataset(server, content), str(tmp_path / "data"))
    assert not (tmp_path / "evil.wav").exists()


def test_archive_with_too_few_clips_is_refused(tmp_path: Path, server: Server) -> None:
    source = replace(dataset(server, ZIP), num_clips=6)
    with refused(server.url, 5, "audio/*.wav", 6):
        download.download(source, str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_output_and_http_errors_are_explained(tmp_path: Path, server: Server) -> None:
    source = dataset(server, ZIP)
    with refused("s3://bucket/data", "local"):
        download.download(source, "s3://bucket/data")
    (tmp_path / "file").write_bytes(b"mine")
    for output in (tmp_path, tmp_path / "file"):
        with refused(output, "holds", remedy=True):
            download.download(source, str(output))
    with refused(tmp_path / "file", "File exists"):
        download.download(source, str(tmp_path / "file" / "data"))
    server.status = 404
    with refused(server.url, 404, remedy="--url"):
        download.download(source, str(tmp_path / "data"))
    server.status = 503
    with refused(server.url, "broke", 503, remedy="resume"):
        download.download(source, str(tmp_path / "data"))
    assert len(server.asked) == 1 + download.ATTEMPTS


def test_unreachable_server_is_an_explained_error(tmp_path: Path, server: Server) -> None:
    source = replace(dataset(server, ZIP), url="http://127.0.0.1:9/x.zip")
    with refused(source.url, "broke", "Connection refused", remedy="resume"):
        download.download(source, str(tmp_path / "data"))


def test_checksum_equals_torchaudios() -> None:
    # Read, not imported, which takes seconds.
    spec = importlib.util.find_spec("torchaudio")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    source = (
        Path(spec.submodule_search_locations[0]) / "datasets" / "speechcommands.py"
    ).read_text()
    speech_commands = DATASETS["speech-commands"]
    assert f'"{speech_commands.url}": "{speech_commands.sha256}"' in source


def test_command_downloads_from_the_given_url(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "esc50", replace(dataset(server, ZIP), url="http://nowhere"))
    command = ["download", "esc50", "--out", str(tmp_path / "data"), "--url", server.url]
    assert main(command) == 0
    assert files(tmp_path / "data") == CLIPS
    assert main(command) == 0
    assert len(server.asked) == 1
