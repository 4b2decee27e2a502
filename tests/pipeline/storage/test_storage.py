"""Files by path: atomic writes, ranges, the same on S3, and an explained error for each fault."""

import json
import multiprocessing
import os
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import boto3
import pyarrow as pa
import pytest

from pipeline import storage
from pipeline.errors import PassingError, UserError
from tests.conftest import forget_clients, make_bucket, s3_environment
from tests.support.errors import assert_names, refused
from tests.support.special_files import IN_PLACE, REPLACED


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, in each of the two kinds of storage."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/some/folder"
    return str(tmp_path / "folder")


# --- both kinds of storage ---------------------------------------------------------------------


def test_written_bytes_are_read_back(folder: str) -> None:
    path = storage.join(folder, "a", "ümlaut #1?%20 .bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"first")
    storage.write_bytes(path, b"second")
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"second"
    storage.remove(path)
    storage.remove(path)
    assert not storage.exists(path)


def test_missing_file_raises_file_not_found(folder: str) -> None:
    path = storage.join(folder, "none")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(path)
    with pytest.raises(FileNotFoundError):
        storage.read_range(path, 0, 1)
    with pytest.raises(FileNotFoundError):
        storage.open_binary(path)
    assert storage.list_files(folder) == []


def test_ranges_are_read_whole_or_refused(folder: str) -> None:
    path = storage.join(folder, "digits")
    storage.write_bytes(path, b"0123456789")
    assert storage.read_range(path, 0, 10) == b"0123456789"
    assert storage.read_range(path, 3, 4) == b"3456"
    assert storage.read_range(path, 9, 1) == b"9"
    for offset_bytes, size_bytes in ((9, 2), (10, 1), (1000, 5), (0, 11)):
        with pytest.raises(EOFError, match=rf"/digits: .*\b{offset_bytes}, .*\b{size_bytes}$"):
            storage.read_range(path, offset_bytes, size_bytes)


def test_listing_is_sorted_recursive_and_limited_to_the_folder(folder: str) -> None:
    names = ["b.txt", "a/2.txt", "a/10.txt", "a/deep/er/x"]
    for name in names:
        storage.write_bytes(storage.join(folder, name), b"x")
    storage.write_bytes(f"{folder}-beside/y", b"y")
    expected = sorted(storage.join(folder, name) for name in names)
    assert storage.list_files(folder) == storage.list_files(f"{folder}/") == expected
    assert storage.list_files(storage.join(folder, "b.txt")) == []
    assert storage.holds_files(folder)
    assert not storage.holds_files(storage.join(folder, "none"))


def test_documents_and_tables_round_trip(folder: str) -> None:
    document = {"b": [1, 2.5, None], "a": "ü"}
    storage.write_json(storage.join(folder, "d.json"), document)
    assert list(storage.read_json(storage.join(folder, "d.json")).items()) == list(document.items())
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(storage.join(folder, "nan.json"), {"x": float("nan")})
    assert not storage.exists(storage.join(folder, "nan.json"))
    table = pa.table({"x": [1, 2], "y": [["a"], []]})
    path = storage.join(folder, "t.parquet")
    storage.write_table(path, table)
    assert storage.read_table(path).equals(table)
    assert storage.read_table(path, pa.schema([("x", pa.int64())])).column_names == ["x"]
    with storage.open_binary(path) as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"PAR1"


# --- local files -------------------------------------------------------------------------------


def test_failed_write_keeps_the_old_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with refused(target, "No space left on device"):
        storage.write_bytes(str(target), b"new")
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_new_file_appears_only_when_committed(kind: str, tmp_path: Path, s3: str) -> None:
    folder = str(tmp_path) if kind == "local" else s3
    path = storage.join(folder, "shards", "file")
    storage.write_bytes(path, b"old")
    with storage.new_file(path) as file:
        file.write(b"not committed")
    assert storage.read_bytes(path) == b"old"
    # More than fits into one S3 put.
    pieces = [bytes([number]) * 2**20 for number in range(40)]
    with storage.new_file(path) as file:
        for piece in pieces:
            file.write(piece)
        file.commit()
    assert storage.read_bytes(path) == b"".join(pieces)
    assert storage.list_files(folder) == [path]


def write_and_die(path: str) -> None:
    """Run in another process: killed when the content is written but not yet renamed."""

    def die(fd: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = die
    storage.write_bytes(path, b"new" * 1000)


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    storage.write_bytes(str(target), b"old")
    writer = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(str(target),))
    writer.start()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    storage.write_bytes(str(target), b"newer")
    assert target.read_bytes() == b"newer"


def test_unwritable_path_is_an_explained_error(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"")
    for path in (tmp_path / "file" / "below", tmp_path, Path("/proc/none/file")):
        with refused(path, "written"):
            storage.write_bytes(str(path), b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_path_through_a_file_is_not_found(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "file"), b"")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "file" / "below"))
    with refused(tmp_path, "folder", type=storage.NoFileError, remedy=True):
        storage.read_bytes(str(tmp_path))
    assert not storage.exists(str(tmp_path / "file" / "below"))
    assert not storage.exists(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("none", "not found"),
        ("file/below", "not found"),
        ("x" * 300, "not found"),
        ("", "a folder, not a file"),
        ("fifo", "not a regular file"),
        ("a\0b", "an invalid path"),
    ],
)
def test_local_file_faults_get_a_reason(tmp_path: Path, name: str, fault: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises((OSError, ValueError)) as caught:
        storage.read_file(str(tmp_path / name))
    assert storage.one_file_fault(caught.value) == fault


@pytest.mark.parametrize("kind", IN_PLACE)
def test_what_is_no_file_does_not_exist_and_is_not_waited_for(kind: str, tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    IN_PLACE[kind](tmp_path / "file")
    assert not storage.exists(path)
    expected = FileNotFoundError if kind.startswith("link") else storage.NoFileError
    with pytest.raises(expected):
        storage.read_bytes(path)
    with pytest.raises(expected):
        storage.open_binary(path)
    assert storage.file_sizes(str(tmp_path)) == ({} if kind == "folder" else {path: 0})


@pytest.mark.parametrize("kind", REPLACED)
def test_what_is_no_file_is_replaced_or_removed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    REPLACED[kind](path)
    storage.write_bytes(str(path), b"x")
    assert path.is_file()
    assert not path.is_symlink()
    path.unlink()
    REPLACED[kind](path)
    storage.remove(str(path))
    assert not path.is_symlink()
    assert not path.exists()


def test_folder_is_neither_replaced_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with refused(tmp_path / "file", "directory", remedy="remove"):
        storage.write_bytes(str(tmp_path / "file"), b"x")
    with refused(tmp_path / "file", "folder", type=storage.NoFileError, remedy="remove"):
        storage.remove(str(tmp_path / "file"))
    storage.write_bytes(str(tmp_path / "x"), b"")
    storage.remove(str(tmp_path / "x" / "below"))


@pytest.mark.parametrize("path", ["loop", "loop/below", "~nobody-of-this-name/x"])
def test_path_that_cannot_be_resolved_is_an_explained_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with refused(path, remedy=True):
        storage.absolute(path)


def answer(status: int, code: str = "") -> storage.ObjectStoreError:
    """What a bucket may answer to a request."""
    return storage.ObjectStoreError(
        "s3://bucket/key", status=status, code=code, text="", endpoint="AWS", is_anonymous=False
    )


def test_overlong_key_concerns_one_file() -> None:
    assert storage.one_file_fault(answer(400, "KeyTooLongError"))


def test_paths_become_absolute_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("data/x") == str(tmp_path / "data" / "x")
    assert storage.absolute("/data/../x/") == "/x"
    assert storage.absolute("~/x") == str(Path.home() / "x")
    assert storage.absolute("s3://bucket/key/") == "s3://bucket/key"
    with refused("", "empty path", remedy="s3://bucket/key"):
        storage.absolute("")
    for path in ("http://host/x", "file:///x"):
        with refused(path, "s3://bucket/key", path.partition("://")[0]):
            storage.absolute(path)
    with refused("s3:///key", "bucket"):
        storage.absolute("s3:///key")


def test_only_passing_faults_are_retried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    outcomes: list[Any] = [OSError("reset"), answer(0), b"content"]

    def action() -> bytes:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return bytes(outcome)

    assert storage.with_retries(action) == b"content"
    assert waits == [1.0, 2.0]
    outcomes[:] = [OSError(str(number)) for number in range(9)]
    with pytest.raises(OSError, match=r"^7$"):
        storage.with_retries(action)
    outcomes[:] = [FileNotFoundError(), b"not asked for"]
    with pytest.raises(FileNotFoundError):
        storage.with_retries(action)
    assert len(outcomes) == 1


# --- S3 ----------------------------------------------------------------------------------------


def test_folder_markers_are_not_listed(s3: str) -> None:
    client = boto3.client("s3")
    bucket = s3.removeprefix("s3://")
    client.put_object(Bucket=bucket, Key="folder/", Body=b"")
    client.put_object(Bucket=bucket, Key="folder/sub/", Body=b"")
    client.close()
    storage.write_bytes(f"{s3}/folder/sub/file", b"x")
    assert storage.list_files(s3) == [f"{s3}/folder/sub/file"]
    assert not storage.exists(f"{s3}/folder")


def test_empty_bucket_exists(s3: str) -> None:
    storage.check_bucket(s3)
    storage.check_bucket(f"{s3}/some/prefix")
    storage.check_bucket("/a/local/path")


def failures(path: str) -> list[str]:
    """The message of each operation on a path, all of which must fail with a `UserError`."""
    messages = []
    for operation in (
        lambda: storage.check_bucket(path),
        lambda: storage.check_readable([path, path]),
        lambda: storage.read_bytes(path),
        lambda: storage.write_bytes(path, b"x"),
        lambda: storage.list_files(path),
        lambda: storage.open_binary(path),
    ):
        with pytest.raises(UserError) as caught:
            operation()
        messages.append(str(caught.value))
    return messages


def assert_one_line(messages: list[str], path: str, *values: str) -> None:
    bucket = "/".join(path.split("/")[:3])
    for message in messages:
        assert message.startswith(f"{bucket}")
        assert "\n" not in message
        assert_names(message, *values)


@pytest.mark.usefixtures("s3")
def test_missing_bucket_is_an_explained_error() -> None:
    path = "s3://no-such-bucket/key"
    with pytest.raises(UserError) as caught:
        storage.write_bytes(path, b"x")
    assert not isinstance(caught.value, PassingError)
    assert_one_line(failures(path), path, "bucket", "endpoint")
    with pytest.raises(Exception) as any_error:  # noqa: PT011 - of whatever kind
        storage.read_file(path)
    assert storage.one_file_fault(any_error.value) is None


@pytest.mark.usefixtures("s3")
def test_invalid_bucket_name_is_an_explained_error() -> None:
    path = "s3://No_Bucket!/key"
    assert_one_line(failures(path), path, "Invalid bucket name")


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail soon: the usual attempts take a minute."""
    monkeypatch.setattr("pipeline.storage.faults.RETRY_AFTER_S", (0.1,))


@pytest.fixture
def fresh_clients() -> Iterator[Any]:
    """Clients keep the endpoint and credentials that they were made with: drop them."""
    forget_clients()
    yield forget_clients
    forget_clients()


class Refusing(BaseHTTPRequestHandler):
    """An S3 that refuses requests without a signature, and answers others with an empty listing."""

    def do_GET(self) -> None:
        is_signed = "Authorization" in self.headers
        body = b"" if is_signed else b"<Error><Code>AccessDenied</Code></Error>"
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200 if is_signed else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server in threads of this process; yields its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fresh_clients: Any) -> None:
    """The user has neither variables nor files of AWS."""
    for name in os.environ.keys() & {"AWS_PROFILE", "AWS_SESSION_TOKEN", *s3_environment("")}:
        monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fresh_clients()


@pytest.mark.usefixtures("few_attempts", "no_credentials")
def test_missing_credentials_are_an_explained_error(
    monkeypatch: pytest.MonkeyPatch, fresh_clients: Any
) -> None:
    path = "s3://bucket/key"
    with serving(Refusing) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert_one_line(failures(path), path, "no credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    fresh_clients()
    assert_one_line(failures(path), path, "nobody")


@pytest.mark.usefixtures("few_attempts")
def test_silent_endpoint_is_a_passing_error(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: Any
) -> None:
    # The port is bound, but nobody listens.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        fresh_clients()
        path = f"{s3}/key"
        assert_one_line(failures(path), path, "no answer", endpoint, "AWS_ENDPOINT_URL")
        with pytest.raises(PassingError):
            storage.write_bytes(path, b"x")
        with pytest.raises(PassingError):
            storage.list_files(f"{path}/below")


@pytest.mark.parametrize("is_answered", [False, True])
def test_storage_that_never_answered_is_noted_once(
    is_answered: bool,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
    fresh_clients: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("pipeline.storage.faults.RETRY_AFTER_S", (0.0,) * 3)
    monkeypatch.setattr("pipeline.storage.faults.SILENT_FOR_S", -1.0)
    monkeypatch.setattr("pipeline.storage.faults._answered", set())
    path = f"{s3}/key"
    if is_answered:
        assert not storage.exists(path)

    def read() -> None:
        raise storage.ObjectStoreError(
            path, status=0, code="", text="", endpoint=endpoint, is_anonymous=False
        )

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    caplog.set_level("INFO")
    for _ in range(2):
        with pytest.raises(storage.ObjectStoreError):
            storage.with_retries(read)
    assert len(caplog.messages) == (0 if is_answered else 1)
    for message in caplog.messages:
        assert_names(message, endpoint, 60, "AWS_ENDPOINT_URL")


@pytest.mark.parametrize(("given", "waited_s"), [("", 60), ("0", 0), ("6.5", 6.5), ("600", 600)])
def test_variable_says_how_long_faults_are_retried(
    given: str, waited_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def fail() -> None:
        raise ConnectionResetError

    clock = SimpleNamespace(monotonic=lambda: now_s, sleep=sleep)
    monkeypatch.setattr("pipeline.storage.faults.time", clock)
    monkeypatch.setenv("AST_RAY_RETRY_S", given)
    with pytest.raises(ConnectionResetError):
        storage.with_retries(fail)
    assert now_s == waited_s


@pytest.mark.parametrize("given", ["soon", "-1", "inf", "nan"])
def test_time_of_retries_that_is_no_number_is_refused(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AST_RAY_RETRY_S", given)
    with refused("AST_RAY_RETRY_S", given, "seconds"):
        storage.read_bytes(str(tmp_path / "file"))


def test_endpoint_without_scheme_is_an_explained_error(
    s3: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: Any
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage:9000")
    fresh_clients()
    path = f"{s3}/key"
    assert_one_line(failures(path), path, "endpoint", "storage:9000")


@pytest.mark.usefixtures("fresh_clients")
def test_refused_credentials_are_an_explained_error(
    strict_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_environment(strict_s3_endpoint).items():
        monkeypatch.setenv(name, value)
    path = "s3://bucket/key"
    messages = failures(path)
    assert_one_line(messages, path, "access refused", "AWS_ACCESS_KEY_ID")
    assert "(InvalidAccessKeyId)" in messages[0]
    with pytest.raises(Exception) as any_error:  # noqa: PT011 - of whatever kind
        storage.read_file(path)
    assert storage.one_file_fault(any_error.value) is None


@pytest.fixture
def restricted(strict_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, fresh_clients: Any) -> str:
    """A bucket with `open/there` and `secret/there`; the user may read what is below `open/`."""

    def ask_for_keys_after(num_requests: str) -> None:
        request = urllib.request.Request(
            f"{strict_s3_endpoint}/moto-api/reset-auth",
            data=num_requests.encode(),
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(request).close()

    ask_for_keys_after("inf")
    for name, value in s3_environment(strict_s3_endpoint).items():
        monkeypatch.setenv(name, value)
    bucket = f"s3://restricted-{time.time_ns()}"
    make_bucket(bucket)
    for name in ("open", "secret"):
        storage.write_bytes(f"{bucket}/{name}/there", b"x")
    for name, value in _new_user(bucket, "s3:GetObject", "/open/*").items():
        monkeypatch.setenv(name, value)
    ask_for_keys_after("0")
    fresh_clients()
    return bucket


def _new_user(bucket: str, action: str, resource: str) -> dict[str, str]:
    """AWS variables of a user who may do one thing only."""
    iam = boto3.client("iam")
    name = bucket.removeprefix("s3://")
    arn = f"arn:aws:s3:::{name}{resource}"
    policy = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": action, "Resource": arn}],
    }
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    iam.close()
    return {
        "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
    }


def test_refused_file_does_not_condemn_its_bucket(restricted: str) -> None:
    there, secret = f"{restricted}/open/there", f"{restricted}/secret/there"
    assert storage.read_bytes(there) == b"x"
    assert storage.read_file(there) == b"x"
    with pytest.raises(storage.ObjectStoreError) as caught:
        storage.read_file(secret)
    assert storage.one_file_fault(caught.value) == "access refused"
    storage.check_readable([secret, secret, there])
    with refused(secret, "AccessDenied"):
        storage.check_readable([secret, secret])
    with refused(there, "AccessDenied"):
        storage.write_bytes(there, b"y")
    with refused(restricted, "AccessDenied"):
        storage.check_bucket(restricted)


def test_missing_or_empty_file_does_not_condemn_its_bucket(s3: str) -> None:
    storage.write_bytes(f"{s3}/empty", b"")
    for uris in ([f"{s3}/empty"], [f"{s3}/missing"], []):
        storage.check_readable(uris)


def test_lasting_storage_errors_are_explained() -> None:
    broken = answer(503, "SlowDown")
    explained = storage.explain(broken)
    assert explained is not None
    assert_names(explained[0], "SlowDown")
    assert storage.one_file_fault(broken) is None
    assert storage.explain(FileNotFoundError("x")) is None
    assert storage.explain(ValueError("x")) is None


class EndlessListing(BaseHTTPRequestHandler):
    """An S3 that lists 200 pages of 1,000 keys, made as they are asked for."""

    num_pages = 200
    pages_asked: ClassVar[list[int]] = []

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        page = int(query.get("continuation-token", ["0"])[0])
        size = int(query.get("max-keys", ["1000"])[0])
        self.pages_asked.append(page)
        keys = "".join(
            f"<Contents><Key>audio/{page * 1000 + number:07d}.flac</Key><Size>{number}</Size>"
            f"<LastModified>2020-01-01T00:00:00.000Z</LastModified></Contents>"
            for number in range(min(size, 1000))
        )
        is_last = page + 1 == self.num_pages
        following = "" if is_last else f"<NextContinuationToken>{page + 1}</NextContinuationToken>"
        body = (
            f"<ListBucketResult><Name>big</Name><IsTruncated>{str(not is_last).lower()}"
            f"</IsTruncated>{following}{keys}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_listing_streams_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first keys arrive long before the last page is requested."""
    EndlessListing.pages_asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), EndlessListing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in s3_environment(f"http://127.0.0.1:{server.server_port}").items():
            monkeypatch.setenv(name, value)
        batches = storage.iter_files("s3://big/audio")
        first = next(batches)
        assert first["path"][:2].to_pylist() == [
            "s3://big/audio/0000000.flac",
            "s3://big/audio/0000001.flac",
        ]
        assert first["size_bytes"][7].as_py() == 7
        assert max(EndlessListing.pages_asked) < 20
        assert first.num_rows + sum(batch.num_rows for batch in batches) == 200_000
        assert max(EndlessListing.pages_asked) == 199
        server.shutdown()
