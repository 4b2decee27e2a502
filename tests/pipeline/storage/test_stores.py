"""How buckets of S3 are reached: by the variables and files of the AWS command line."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.storage.stores import connect
from tests.conftest import forget_clients, s3_environment


class Recorder(ThreadingHTTPServer):
    """An S3 whose every object is `x`, and which keeps the headers of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[tuple[str, dict[str, str]]] = []


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.requests.append((f"{self.command} {self.path}", headers))
        is_listing = "list-type" in self.path
        keys = "<IsTruncated>false</IsTruncated><KeyCount>0</KeyCount>"
        body = f"<ListBucketResult>{keys}</ListBucketResult>".encode() if is_listing else b"x"
        self.send_response(206 if "range" in headers else 200)
        self.send_header("Content-Range", "bytes 0-0/1")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def recording() -> Iterator[Recorder]:
    with Recorder() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder for the user's `config` and `credentials`; no variable but those that name them."""
    for name in [*s3_environment(""), "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    forget_clients()
    yield tmp_path
    forget_clients()


def use(path: str) -> None:
    """Every kind of request."""
    storage.check_bucket(path)
    storage.write_bytes(path, b"x")
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"x"
    assert storage.read_range(path, 0, 1) == b"x"
    assert storage.list_files("s3://lab") == []
    storage.remove(path)


def write_files(folder: Path, config: str) -> None:
    keys = "aws_access_key_id = {0}\naws_secret_access_key = secret\n"
    credentials = f"[default]\n{keys.format('MINE')}[work]\n{keys.format('WORK')}"
    (folder / "credentials").write_text(credentials)
    (folder / "config").write_text(config)


@pytest.mark.parametrize("by_service", [False, True])
@pytest.mark.parametrize("profile", ["default", "work"])
def test_every_request_follows_the_config_file(
    profile: str, by_service: bool, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as server:
        section = "default" if profile == "default" else f"profile {profile}"
        address = f"endpoint_url = {server.endpoint}\n"
        services = f"services = lab\n[services lab]\ns3 =\n  {address}"
        where = services if by_service else address
        write_files(files, f"[{section}]\nregion = eu-north-1\n{where}")
        if profile != "default":
            monkeypatch.setenv("AWS_PROFILE", profile)
        use("s3://lab/key")
    signers = {headers["authorization"] for _, headers in server.requests}
    key = {"default": "MINE", "work": "WORK"}[profile]
    assert len(server.requests) >= 7
    assert all(f"Credential={key}/" in signer for signer in signers)
    assert all("/eu-north-1/s3/" in signer for signer in signers)


def test_variables_take_precedence_over_the_file(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as server:
        write_files(files, "[default]\nregion = eu-north-1\nendpoint_url = http://127.0.0.1:9\n")
        for name, value in s3_environment(server.endpoint).items():
            monkeypatch.setenv(name, value)
        use("s3://lab/key")
    assert all("Credential=test/" in headers["authorization"] for _, headers in server.requests)
    assert all("/us-east-1/" in headers["authorization"] for _, headers in server.requests)


@pytest.mark.parametrize("has_credentials", [False, True])
def test_public_bucket_is_read_without_a_signature(
    has_credentials: bool, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        if has_credentials:
            write_files(files, "")
            monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        use("s3://lab/key")
    assert not [request for request, headers in server.requests if "authorization" in headers]


@pytest.mark.parametrize("pays", [False, True])
def test_reader_pays_where_the_user_says_so(
    pays: bool, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(files, "")
    with recording() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        if pays:
            monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
        use("s3://lab/key")
    payers = {headers.get("x-amz-request-payer") for _, headers in server.requests}
    assert payers == ({"requester"} if pays else {None})


@pytest.mark.parametrize(
    ("bucket", "options", "url"),
    [
        ("lab", "", "https://lab.s3.eu-north-1.amazonaws.com"),
        ("a.b", "", "https://s3.eu-north-1.amazonaws.com"),
        ("lab", "s3 =\n  addressing_style = path\n", "https://s3.eu-north-1.amazonaws.com"),
        ("lab", "endpoint_url = http://x:1\n", "http://x:1"),
        (
            "lab",
            "endpoint_url = http://x:1\ns3 =\n  addressing_style = virtual\n",
            "http://lab.x:1",
        ),
    ],
)
def test_bucket_is_in_the_host_name_or_in_the_path(
    bucket: str, options: str, url: str, files: Path
) -> None:
    write_files(files, f"[default]\nregion = eu-north-1\n{options}")
    assert connect("s3", bucket).store.config["endpoint"] == url
