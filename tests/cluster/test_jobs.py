"""Sessions and jobs against Ray itself: one cluster with a job server, one embedded session.

The cluster has its own ports and temporary folder and ends with the process that started it, so it
does not disturb any other Ray on the machine.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from cluster import job_server, job_table, jobs, session, worker_errors
from cluster.own_files import find_own_files
from cluster.packages import parse_packages
from pipeline.errors import UserError
from pipeline.terminal import log
from tests.support.errors import assert_names, refused
from tests.support.ray_head import Cluster, small_environment, started, submit_when_ready
from tests.support.steps import PROJECT, ray_folder

STAND_IN = """
import json, os, sys, time
print(json.dumps({"arguments": sys.argv[1:], "files": sorted(os.listdir(".")),
                  "environment": dict(os.environ)}), flush=True)
if sys.argv[1] == "count":
    for number in range(int(sys.argv[2])):
        print("line", number, flush=True)
        time.sleep(float(sys.argv[3]))
if sys.argv[1] == "count" and len(sys.argv) == 5:
    deadline = time.monotonic() + 600
    while not os.path.exists(sys.argv[4]) and time.monotonic() < deadline:
        time.sleep(0.05)
if sys.argv[1] == "sleep":
    time.sleep(7200)
if sys.argv[1] == "import":
    print("value", __import__(sys.argv[2]).VALUE, flush=True)
if sys.argv[1] == "exit":
    sys.exit(int(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def notes() -> None:
    """Notes go to standard error, as the program lets them."""
    log.set_up(logging.INFO)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    project = tmp_path_factory.mktemp("project")
    (project / "ray_job.py").write_text(STAND_IN)
    for left_out in (".git", ".venv", "build", "data", "runs", "torch"):
        (project / left_out).mkdir()
        (project / left_out / "large").write_text("x")
    python = str(small_environment(tmp_path_factory.mktemp("environment")))
    with ray_folder() as folder, started(folder, str(project), python) as (head, process):
        # Started now, tested later: a job takes seconds to begin.
        submit_when_ready(head, process, "exit", "7", submission_id="seven")
        submit_when_ready(head, process, "sleep", submission_id="sleeper")
        yield head


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on busy cores may need more time to answer than one that serves alone."""
    monkeypatch.setattr(job_server, "VERSION_TIMEOUT_S", 60.0)


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


def printed(text: str) -> dict[str, Any]:
    """The line of a job's log in which the stand-in describes itself."""
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"arguments"')]
    assert len(lines) == 1
    return dict(lines[0])


def counted(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("line ")]


def test_job_gets_its_arguments_and_its_log_arrives_whole(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["count", "25", "0.05", "two words", "it's", '"quoted"', "$HOME", "*", ";ls", ""]
    environment = {"AWS_REGION": "eu north", "EMPTY": ""}
    status = jobs.submit(
        arguments, working_dir=cluster.project, address=cluster.url, environment=environment
    )
    out, err = capsys.readouterr()
    assert status == 0
    job = printed(out)
    assert job["arguments"] == arguments
    assert job["files"] == ["ray_job.py"]
    assert {name: job["environment"][name] for name in environment} == environment
    assert job["environment"]["RAY_ADDRESS"]
    assert counted(out) == [f"line {number}" for number in range(25)]
    assert "SUCCEEDED" in err
    assert "INFO" not in err


def test_job_finds_a_recipe_given_by_path(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "own.toml"
    recipe.touch()
    arguments = ["train", str(recipe), "--set", "train.epochs=1"]
    status = jobs.submit(
        arguments, working_dir=cluster.project, recipe=str(recipe), address=cluster.url
    )
    assert status == 0
    job = printed(capsys.readouterr().out)
    assert job["arguments"] == ["train", "recipe/own.toml", "--set", "train.epochs=1"]
    assert job["files"] == ["ray_job.py", "recipe"]


def test_job_gets_own_files_and_packages(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own" / "lists").mkdir(parents=True)
    for name in ("own.toml", "lists/clips.csv", "large.tar", ".env", "notes.md"):
        (tmp_path / "own" / name).write_text(name)
    status = jobs.submit(
        ["import", "tiny"],
        working_dir=cluster.project,
        own=find_own_files(tmp_path / "own", ["*.md"]),
        packages=parse_packages([str(tiny_wheel(tmp_path))]),
        address=cluster.url,
    )
    out, err = capsys.readouterr()
    assert status == 0, out + err
    assert printed(out)["files"] == ["lists", "own.toml", "ray_job.py", "wheels"]
    assert "value 7" in out


def tiny_wheel(folder: Path) -> Path:
    """A wheel with a module `tiny`, whose VALUE is 7."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    about = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", "VALUE = 7")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", tag)
        wheel.writestr(f"{about}/RECORD", f"tiny.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n")
    return path


def test_packages_that_cannot_be_installed_fail_the_job_with_the_reason(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_text("no wheel")
    status = jobs.submit(
        ["exit", "0"],
        working_dir=cluster.project,
        packages=parse_packages([str(broken)]),
        address=cluster.url,
    )
    assert status == 1
    err = capsys.readouterr().err
    assert "broken-1.0-py3-none-any.whl is invalid" in err
    assert "Traceback" not in err


def test_exit_status_of_a_failed_job_is_returned(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jobs.print_logs("seven", address=cluster.url, follow=True) == 7
    followed, err = capsys.readouterr()
    assert "FAILED, exit status 7" in err
    assert jobs.print_logs("seven", address=cluster.url) == 0
    assert capsys.readouterr().out == followed
    assert printed(followed)["arguments"] == ["exit", "7"]


def test_submit_without_waiting_prints_only_the_id(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["exit", "1"]
    assert jobs.submit(arguments, working_dir=cluster.project, address=cluster.url, wait=False) == 0
    job_id, err = capsys.readouterr()
    assert job_id.startswith("raysubmit_")
    assert f"ray_job.py logs --follow {job_id.strip()} --address {cluster.url}" in err
    job_table.list_jobs(address=cluster.url)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "python ray_job.py exit 1" in rows[job_id.strip()]
    assert "seven" in rows
    job_table.list_jobs(address=cluster.url, as_json=True)
    listed = {job["id"]: job for job in json.loads(capsys.readouterr().out)}
    assert list(listed["sleeper"]) == [
        "id", "status", "start", "end", "exit_status", "entrypoint", "message",
    ]  # fmt: skip
    assert (listed["sleeper"]["end"], listed["sleeper"]["exit_status"]) == (None, None)
    assert listed[job_id.strip()]["entrypoint"] == "python ray_job.py exit 1"
    assert datetime.fromisoformat(listed["seven"]["start"]).utcoffset() == timedelta(0)


def test_used_id_is_refused(cluster: Cluster) -> None:
    with refused(cluster.url, "seven", "exists"):
        jobs.submit(
            ["exit", "0"], working_dir=cluster.project, address=cluster.url, submission_id="seven"
        )


def test_interrupted_follower_leaves_the_job_running(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    call = f"print_logs('sleeper', address='{cluster.url}', follow=True)"
    code = f"from pipeline.terminal import log; log.set_up({logging.INFO});"
    code += "from cluster import job_server, jobs; job_server.VERSION_TIMEOUT_S = 60.0;"
    code += f"exit(jobs.{call})"
    follower = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with follower:
        assert follower.stdout is not None
        assert follower.stderr is not None
        for line in follower.stdout:
            if line.startswith("{"):
                break
        follower.send_signal(signal.SIGINT)
        assert follower.wait(120) == 130
        err = follower.stderr.read()
    assert_names(err, "sleeper", "running")
    assert f"ray_job.py stop sleeper --address {cluster.url}" in err
    assert "Traceback" not in err

    job_table.list_jobs(address=cluster.url)
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "RUNNING" in rows["sleeper"]
    jobs.stop("sleeper", address=cluster.url)
    assert_names(capsys.readouterr().err, "sleeper", "STOPPED")
    jobs.stop("sleeper", address=cluster.url)
    assert_names(capsys.readouterr().err, "sleeper", "already", "STOPPED")
    assert jobs.print_logs("sleeper", address=cluster.url, follow=True) == 130


class Dropper(socketserver.ThreadingTCPServer):
    """Passes connections on to a server and breaks the first few that follow a log.

    `done` appears after the last of them.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self, target: tuple[str, int], done: Path, *, num_drops: int, after_bytes: int
    ) -> None:
        self.target = target
        self.done = done
        self.drops_left = num_drops
        self.after_bytes = after_bytes
        super().__init__(("127.0.0.1", 0), Passage)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Passage(socketserver.BaseRequestHandler):
    server: Dropper

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(self.server.target) as other:
            request = self.request.recv(65536)
            other.sendall(request)
            threading.Thread(target=self.send_on, args=(other,), daemon=True).start()
            num_bytes = 0
            while data := other.recv(4096):
                self.request.sendall(data)
                num_bytes += len(data)
                follows = b"/logs/tail" in request
                if follows and self.server.drops_left and num_bytes > self.server.after_bytes:
                    self.server.drops_left -= 1
                    if not self.server.drops_left:
                        self.server.done.touch()
                    return

    def send_on(self, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(4096):
                other.sendall(data)


def test_dropped_connection_neither_loses_nor_repeats_lines(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = int(cluster.url.rsplit(":", 1)[1])
    # The job waits for it: a log is not followed any further once its job has ended.
    done = tmp_path / "done"
    with Dropper(("127.0.0.1", port), done, num_drops=2, after_bytes=3000) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        status = jobs.submit(
            ["count", "400", "0.01", str(done)], working_dir=cluster.project, address=proxy.url
        )
        proxy.shutdown()
    assert proxy.drops_left == 0
    assert status == 0
    out = capsys.readouterr().out
    printed(out)
    assert counted(out) == [f"line {number}" for number in range(400)]


@pytest.mark.parametrize(
    "action",
    [
        lambda url: jobs.print_logs("nobody", address=url),
        lambda url: jobs.print_logs("nobody", address=url, follow=True),
        lambda url: jobs.stop("nobody", address=url),
    ],
)
def test_unknown_id_is_an_explained_error(
    cluster: Cluster, action: Callable[[str], object]
) -> None:
    with refused(cluster.url, "Job nobody", "exist", remedy="jobs"):
        action(cluster.url)


def test_invalid_id_is_refused_before_connecting() -> None:
    with refused("'../version?'", "id"):
        jobs.stop("../version?", address="http://127.0.0.1:1")


def test_folder_and_command_are_checked_before_connecting(
    tmp_path: Path,
) -> None:
    with refused(tmp_path, "ray_job.py"):
        jobs.submit(["report"], working_dir=str(tmp_path), address="http://127.0.0.1:1")
    with refused("submit", "command"):
        jobs.submit([], working_dir=str(PROJECT), address="http://127.0.0.1:1")


def test_missing_server_is_an_immediate_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, with a short timeout."""
    timeouts, request = [], requests.request

    def counting(*arguments: Any, **options: Any) -> requests.Response:
        timeouts.append(options["timeout"])
        return request(*arguments, **options)

    monkeypatch.setattr(requests, "request", counting)
    with refused("http://127.0.0.1:1", "no job server", type=job_server.UnreachableError):
        job_table.list_jobs(address="127.0.0.1:1")
    assert timeouts == [(job_server.CONNECT_TIMEOUT_S, job_server.VERSION_TIMEOUT_S)]


def test_port_of_another_protocol_is_an_explained_error() -> None:
    """Such as 6379, where Ray's nodes meet: the answer's bytes are not shown."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(b"\x00\x00\x12\x04@\xfe\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with refused(url, "HTTP", type=job_server.UnreachableError, remedy="--address") as caught:
            job_table.list_jobs(address=url)
        server.shutdown()
    assert "@" not in str(caught.value)


def test_missing_file_of_the_token_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str) -> None:
        raise AuthenticationError("no token")

    monkeypatch.setattr(job_server, "JobServer", fail)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for path, where in (("/no/such/token", "RAY_AUTH_TOKEN_PATH"), (__file__, "http://head:8265")):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", path)
        with refused(where, remedy=True):
            job_table.list_jobs(address="http://head:8265")


@contextlib.contextmanager
def answering(status: int, text: str) -> Iterator[str]:
    """A server that answers every request alike."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "values"),
    [
        (401, "Unauthorized: Missing authentication token", ["RAY_AUTH_MODE=token"]),
        (403, "Forbidden: Invalid authentication token", ["RAY_AUTH_TOKEN"]),
        (404, "not here", ["job server"]),
        (200, "<html>", ["job server"]),
    ],
)
def test_refusing_or_foreign_server_is_an_explained_error(
    status: int, text: str, values: list[str]
) -> None:
    with answering(status, text) as url, refused(url, *values):
        job_table.list_jobs(address=url)


@pytest.mark.parametrize(
    ("address", "environ", "url"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
        (None, {"RAY_ADDRESS": "https://head"}, "https://head"),
        (None, {"RAY_ADDRESS": "http://a", "RAY_API_SERVER_ADDRESS": "http://b"}, "http://b"),
        ("head:8265/", {"RAY_API_SERVER_ADDRESS": "http://b"}, "http://head:8265"),
    ],
)
def test_server_address_comes_from_option_or_environment(
    address: str | None, environ: dict[str, str], url: str
) -> None:
    assert job_server._server_url(address, environ) == url


@pytest.mark.parametrize("address", ["ray://head:10001", "http://", "http://head:port"])
def test_invalid_server_address_is_refused(address: str) -> None:
    with refused(address.rstrip("/"), "URL"):
        job_table.list_jobs(address=address)


def test_given_address_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:2")
    with refused("http://127.0.0.1:1", "no job server", type=job_server.UnreachableError):
        job_table.list_jobs(address="http://127.0.0.1:1")
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:2"


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 130),
    ],
)
def test_exit_status_follows_the_status_of_the_job(
    status: JobStatus,
    code: int | None,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    details = SimpleNamespace(status=status, driver_exit_code=code, message="no such package")
    monkeypatch.setattr(jobs, "_follow", lambda *_: details)
    assert jobs._follow_to_end(None, "one") == expected  # type: ignore[arg-type]
    # For a job that never ran, only the message gives the reason.
    never_ran = status == JobStatus.FAILED and code is None
    assert ("no such package" in capsys.readouterr().err) == never_ran


AWS = {
    "AWS_ENDPOINT_URL": "http://minio:9000",
    "AWS_REGION": "eu-north-1",
    "AWS_PROFILE": "mine",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "HOME": "/home/me",
}


def test_secrets_are_forwarded_only_on_request() -> None:
    plain = {"AWS_ENDPOINT_URL": "http://minio:9000", "AWS_REGION": "eu-north-1"}
    assert jobs.forwarded_environment([], credentials=False, environ=AWS) == plain
    secret = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    assert jobs.forwarded_environment([], credentials=True, environ=AWS) == plain | secret


def test_variables_are_forwarded_by_name_or_value() -> None:
    items = ["HOME", "AWS_REGION=here", "EMPTY=", "EQUAL=a=b", "LINES= 1\n2 "]
    variables = jobs.forwarded_environment(items, credentials=False, environ=AWS)
    assert variables == {
        "AWS_ENDPOINT_URL": "http://minio:9000",
        "AWS_REGION": "here",
        "HOME": "/home/me",
        "EMPTY": "",
        "EQUAL": "a=b",
        "LINES": " 1\n2 ",
    }


@pytest.mark.parametrize(
    ("item", "value"),
    [
        ("", "got ''"),
        ("=value", "got ''"),
        ("9LIVES=1", "got '9LIVES'"),
        ("WITH SPACE=1", "got 'WITH SPACE'"),
        ("MISSING", "MISSING=VALUE"),
    ],
)
def test_invalid_variable_is_refused(item: str, value: str) -> None:
    with refused("--env", value):
        jobs.forwarded_environment([item], credentials=False, environ={})


def test_missing_credentials_are_refused() -> None:
    with refused("--forward-credentials", "AWS_SECRET_ACCESS_KEY"):
        jobs.forwarded_environment([], credentials=True, environ={"AWS_ACCESS_KEY_ID": "key"})


def fails_in(kind: str) -> Callable[[], None]:
    """A function that ends with a UserError as Ray's tasks pass it on.

    Tasks on Ray Data return theirs, see `pipeline.on_ray.tasks` and its tests in `test_prepare`.

    Local functions travel by value: workers need not be able to import this file.
    """

    def fail() -> None:
        raise UserError("clips.csv", "line 3 has no label")

    def fail_in_another_task() -> None:
        ray.get(ray.remote(num_cpus=0)(fail).remote())

    return {"task": fail, "nested": fail_in_another_task}[kind]


def check_embedded_session() -> None:
    assert ray.cluster_resources()["CPU"] == 1.0
    assert ray.get(ray.remote(lambda: os.environ["RAY_AUTH_MODE"]).remote()) == "token"
    for kind in ("task", "nested"):
        with pytest.raises(Exception, match="line 3 has no label") as caught:
            ray.get(ray.remote(fails_in(kind)).remote())
        cause = worker_errors.unwrap(caught.value)
        assert type(cause) is UserError
        assert (cause.where, cause.what) == ("clips.csv", "line 3 has no label")
    with session.connect(address="local", num_cpus=7):
        assert ray.cluster_resources()["CPU"] == 1.0
    assert ray.is_initialized()
    raise KeyError("mine")


def test_embedded_session_starts_and_ends_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(KeyError, match="mine"), session.connect(num_cpus=1):
        check_embedded_session()
    assert not ray.is_initialized()
    assert not [name for name in os.environ if name.startswith("RAY_AUTH")]
    assert list(tmp_path.iterdir()) == []
    assert "authentication" not in capfd.readouterr().err


def test_session_joins_a_cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.gcs_address)
    with session.connect():
        assert ray.cluster_resources()["CPU"] == 1.0
        assert ray.get_runtime_context().gcs_address.endswith(cluster.gcs_address.split(":")[1])
    assert not ray.is_initialized()
    with refused("--num-cpus"), session.connect(num_cpus=2):
        pass


@pytest.mark.parametrize(
    ("address", "value"),
    [
        ("127.0.0.1:1", "no Ray cluster"),
        ("http://127.0.0.1:8265", "submit"),
        ("127.0.0.1", "host:port"),
        ("head:port", "host:port"),
    ],
)
def test_unreachable_cluster_is_an_explained_error(
    address: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is checked before Ray itself tries for many minutes."""
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray tries"))
    with refused(address, value), session.connect(address=address):
        pass


def test_overlong_temporary_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("x" * 100)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    with refused(folder, "long", "RAY_TMPDIR"), session.connect():
        pass


def test_unwrap_finds_the_user_error_among_worker_failures() -> None:
    # Seconds to import, and needed by nothing else here.
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    inner = UserError("data", "no clips of fold 6")
    failures: dict[int, Exception] = {0: RuntimeError("connection closed by peer"), 1: inner}
    training = WorkerGroupError("two workers failed", failures)
    assert worker_errors.unwrap(training) is inner
    assert worker_errors.unwrap(ControllerError(training)) is inner
    assert worker_errors.unwrap(WorkerGroupError("one", {0: RuntimeError("bug")})) is not inner


def test_unwrap_leaves_other_errors_alone() -> None:
    error = ValueError("pipeline.errors.UserError is mentioned")
    error.__cause__ = error
    assert worker_errors.unwrap(error) is error
    interrupt = KeyboardInterrupt()
    interrupt.__context__ = UserError("", "earlier")
    assert worker_errors.unwrap(interrupt) is interrupt
    hidden = RuntimeError("bug")
    hidden.__context__ = UserError("", "dealt with")
    hidden.__suppress_context__ = True
    assert worker_errors.unwrap(hidden) is hidden
