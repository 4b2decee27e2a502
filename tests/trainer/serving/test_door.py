"""What clients reach: paths, methods, limits, the token, and one line of JSON for every refusal."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.audio import encode
from tests.support.errors import refused
from tests.support.serving import LocalModel, local_server, send
from tests.support.tagging import Trained, sound
from trainer.serving import connection
from trainer.serving.reply import Reply
from trainer.serving.request import TagRequest
from trainer.serving.server import address_of, is_loopback, open_port
from trainer.serving.settings import ServeLimits
from trainer.tagging.model import Tagger

LIMITS = ServeLimits(max_mb=1.0)
TOKEN = "a token of 24 characters".replace(" ", "-")


@pytest.fixture(scope="module")
def address(tagger: Tagger) -> Iterator[str]:
    with local_server(tagger, limits=LIMITS) as at:
        yield at


@pytest.fixture(scope="module")
def impatient(tagger: Tagger) -> Iterator[str]:
    """The address of a server that waits half a second for a body."""
    with local_server(tagger, limits=replace(LIMITS, body_timeout_s=0.5)) as at:
        yield at


@pytest.fixture(scope="module")
def audio() -> bytes:
    return encode(sound("dog", 0.5))


def raw(address: str, sent: bytes) -> bytes:
    """All that comes back for these bytes, until the server closes or two lines of JSON end."""
    host, port = urlsplit(address).netloc.split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(sent)
        while not received.endswith(b"}\n") and (part := connection.recv(65_536)):
            received += part
    return received


def test_audio_in_any_container_is_tagged(address: str) -> None:
    kinds = (("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("MP3", "MPEG_LAYER_III"), ("WAV", "FLOAT"))
    for container, subtype in kinds:
        content = encode(sound("rain", 0.6), container=container, subtype=subtype)
        answer = send(address, "tag?top=1", content)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.document["max_labels"] == ["rain"]
        assert len(answer.document["windows"]) in (1, 2)


def test_a_body_without_length_is_tagged(address: str, audio: bytes) -> None:
    pieces = (audio[at : at + 1_000] for at in range(0, len(audio), 1_000))
    assert send(address, "tag", pieces).document == send(address, "tag", audio).document


def test_model_and_health_are_told(address: str, tagger: Tagger) -> None:
    told = send(address, "model", method="GET").document
    assert (told["labels"], told["max_mb"]) == (tagger.labels, 1.0)
    assert (told["window_s"], told["hop_s"]) == (0.64, 0.32)
    assert send(address, "health", method="GET").document == {"status": "ok"}
    head = send(address, "health", method="HEAD")
    assert (head.status, head.body) == (200, b"")


def test_health_fails_without_a_replica(tagger: Tagger) -> None:
    model = LocalModel(tagger, LIMITS)
    model.is_up = False
    with local_server(tagger, model=model) as address:
        assert send(address, "health", method="GET").status == 503


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "tag", 405), ("PUT", "tag", 405), ("HEAD", "tag", 405), ("DELETE", "", 405),
        ("GET", "nothing", 404), ("POST", "tag/", 404), ("GET", "page.css/../../door.py", 404),
        ("OPTIONS", "tag", 405), ("GET", "-/routes", 404),
    ],
)  # fmt: skip
def test_wrong_paths_and_methods_are_refused(
    method: str, path: str, status: int, address: str
) -> None:
    answer = send(address, path, method=method)
    assert answer.status == status
    assert method == "HEAD" or answer.error
    assert status == 404 or answer.headers["allow"]


def test_an_empty_body_or_a_wrong_kind_is_refused(address: str, audio: bytes) -> None:
    assert send(address).status == send(address, "tag", b"").status == 400
    form = send(address, "tag", audio, content_type="multipart/form-data; boundary=x")
    assert form.status == 415
    assert "--data-binary" in form.error
    assert send(address, "tag", audio, content_encoding="gzip").status == 415
    assert send(address, "tag", b"hello", content_type="text/plain").status == 422
    assert send(address, "tag?top=x", audio).status == 400


def test_too_large_a_body_is_refused_with_and_without_its_length(address: str) -> None:
    whole = bytes(1_000_001)
    with_length = send(address, "tag", whole)
    without = send(address, "tag", (whole[at : at + 65_536] for at in range(0, len(whole), 65_536)))
    for answer in (with_length, without):
        assert answer.status == 413
        assert "1 MB" in answer.error
    assert send(address, "tag", whole[:-1]).status == 422


@pytest.mark.parametrize("length", [b"-5", b"abc", b"1e3", b"99999999999999999999999"])
def test_a_length_that_is_none_is_refused(length: bytes, address: str) -> None:
    head = b"POST /tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + length + b"\r\n\r\n"
    assert raw(address, head).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))


def test_a_slow_body_is_refused_and_a_broken_one_forgotten(
    address: str, impatient: str, audio: bytes
) -> None:
    head = b"POST /tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nRIFF"
    received = raw(impatient, head)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert json.loads(received.splitlines()[-1]).keys() == {"error"}
    host, port = urlsplit(address).netloc.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head)
    assert send(address, "tag", audio).status == 200


@pytest.mark.parametrize("head", [b"GET / HTTP/1.1\r\nX: ", b"GET /"])
def test_headers_without_end_are_refused(head: bytes, address: str) -> None:
    # A server that took them would wait for more, and the client in vain.
    with suppress(ConnectionResetError, BrokenPipeError):
        assert raw(address, head + b"a" * 200_000).startswith(b"HTTP/1.1 400 ")
    assert send(address, "health", method="GET").status == 200


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /tag HTTP/1.1\r\nHost: localhost\r\nContent-Length: "


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GE", b""),
        (GET, b""),
        (GET + b"\r\n" + GET, b"HTTP/1.1 200 "),
        (GET + b"Content-Length: 9\r\n\r\n", b"HTTP/1.1 200 "),
        (POST + b"9\r\n\r\n", b"HTTP/1.1 408 "),
        (POST + b"9999999999\r\n\r\n", b"HTTP/1.1 413 "),
    ],
    ids=["nothing", "part of a line", "headers", "next", "body of none", "body", "refused body"],
)
def test_a_client_that_is_slow_for_ever_holds_no_connection(
    sent: bytes, answer: bytes, impatient: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 1.0)
    host, port = urlsplit(impatient).netloc.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(sent)
        threading.Thread(target=dribble, args=(client,), daemon=True).start()
        assert read_to_end(client).startswith(answer)


def read_to_end(client: socket.socket) -> bytes:
    """All that comes until the server closes; raises TimeoutError if it does not."""
    received = bytearray()
    with suppress(ConnectionError):
        while part := client.recv(2**20):
            received += part
    return bytes(received)


def dribble(client: socket.socket) -> None:
    """Send a byte now and then, which is no end of anything."""
    with suppress(OSError):
        while True:
            time.sleep(0.2)
            client.sendall(b"x")


def test_a_client_that_reads_no_answer_holds_no_connection(
    tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(connection, "REQUEST_TIMEOUT_S", 600.0)  # which ends it, too
    lose, is_lost = connection.Connection.connection_lost, threading.Event()

    def note(lost: connection.Connection, error: Exception | None) -> None:
        lose(lost, error)
        is_lost.set()

    monkeypatch.setattr(connection.Connection, "connection_lost", note)

    class Talker(LocalModel):
        async def tag(self, request: TagRequest) -> Reply:
            return Reply(status=200, body=b"x" * 50_000_000)

    with local_server(tagger, model=Talker(tagger, LIMITS)) as at:
        host, port = urlsplit(at).netloc.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(POST + b"1\r\n\r\nx")
            assert is_lost.wait(60)
            assert 0 < len(read_to_end(client)) < 50_000_000


def test_a_host_of_another_name_is_refused_without_a_token(address: str, tagger: Tagger) -> None:
    for name in ("attacker.example", "attacker.example:8000", "127.0.0.1.example", ""):
        assert send(address, "model", method="GET", host=name).status == 421
    for name in ("localhost", "LOCALHOST:1", "[::1]", "[::1]:1", "127.0.0.1:1"):
        assert send(address, "model", method="GET", host=name).status == 200


def test_with_a_token_only_the_page_and_health_are_open(tagger: Tagger, audio: bytes) -> None:
    with local_server(tagger, token=TOKEN) as address:
        right = {"authorization": f"Bearer {TOKEN}"}
        for shown in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}):
            for method, path in (
                ("POST", "tag"),
                ("GET", "model"),
                ("GET", f"model?token={TOKEN}"),
            ):
                answer = send(
                    address, path, audio if path == "tag" else None, method=method, **shown
                )
                assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
                assert TOKEN not in answer.error
        assert send(address, "tag", audio, **right).status == 200
        assert send(address, "model", method="GET", **right).status == 200
        for path in ("", "page.js", "page.css", "health"):
            assert send(address, path, method="GET").status == 200


def test_every_answer_has_the_headers_for_browsers(address: str) -> None:
    for method, path in (("GET", ""), ("GET", "model"), ("POST", "tag"), ("GET", "nothing")):
        headers = send(address, path, method=method).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers


class Waiting:
    """A model that answers when it may."""

    def __init__(self) -> None:
        self.asked = threading.Semaphore(0)
        self.may = threading.Event()

    async def tag(self, request: TagRequest) -> Reply:
        self.asked.release()
        await asyncio.to_thread(self.may.wait, 60)
        return Reply(status=200, body=request.audio)

    async def is_ready(self) -> bool:
        return True


def test_requests_beyond_what_is_held_are_told_to_come_again(tagger: Tagger) -> None:
    model = Waiting()
    limits = ServeLimits(max_mb=0.001, max_in_flight=4)
    with local_server(tagger, limits=limits, model=model) as address, ThreadPoolExecutor(4) as pool:
        held = [pool.submit(send, address, "tag", b"%d" % number) for number in range(4)]
        for _ in held:
            assert model.asked.acquire(timeout=60)
        late = send(address, "tag", b"late")
        assert (late.status, late.headers["retry-after"]) == (503, "1")
        model.may.set()
        assert [one.result().body for one in held] == [b"0\n", b"1\n", b"2\n", b"3\n"]
        assert send(address, "tag", b"late").status == 200


def test_bodies_beyond_what_is_held_of_all_are_told_to_come_again(tagger: Tagger) -> None:
    model = Waiting()
    limits = ServeLimits(max_mb=0.001)
    with (
        local_server(tagger, limits=limits, model=model) as address,
        ThreadPoolExecutor(10) as pool,
    ):
        held = [pool.submit(send, address, "tag", bytes(1_000)) for _ in range(9)]
        for _ in held:
            assert model.asked.acquire(timeout=60)
        assert limits.max_held_bytes == 10_000
        last = pool.submit(send, address, "tag", bytes(990))
        assert model.asked.acquire(timeout=60)
        assert send(address, "tag", bytes(20)).status == 503
        model.may.set()
        assert {one.result().status for one in [*held, last]} == {200}
        assert send(address, "tag", bytes(1_000)).status == 200


class Failing(Waiting):
    """A model with a fault of its own."""

    async def tag(self, request: TagRequest) -> Reply:
        raise ZeroDivisionError("of the model")


def test_a_fault_of_the_program_is_one_line_for_the_client_and_one_in_the_log(
    tagger: Tagger, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with local_server(tagger, model=Failing()) as address:
        answer = send(address, "tag", b"x")
    assert answer.status == 500
    assert "ZeroDivisionError" not in answer.error
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "ZeroDivisionError" in record.getMessage()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_no_answer_in_time_is_told(tagger: Tagger) -> None:
    model = Waiting()
    with local_server(tagger, limits=ServeLimits(answer_timeout_s=0.05), model=model) as address:
        assert send(address, "tag", b"x").status == 504
        model.may.set()


def test_each_request_is_a_line_of_the_log_without_its_query(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "trainer.serving")
    send(address, "model?secret=1", method="GET")
    deadline = time.monotonic() + 60
    while not caplog.records:  # it comes after the answer
        assert time.monotonic() < deadline, "no line within 60 s"
        time.sleep(0.01)
    (line,) = [one.getMessage() for one in caplog.records if one.name == "trainer.serving.door"]
    assert line.startswith("127.0.0.1 GET /model 200 in ")


def test_fifty_requests_at_once_get_their_own_answers(address: str, trained: Trained) -> None:
    contents = [Path(clip.uri).read_bytes() for clip in trained.clips]
    contents = [*contents, *contents[:14]]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda audio: send(address, "tag", audio), contents))
    durations = [answer.document["duration_s"] for answer in answers]
    assert durations == [(len(content) - 44) / 2 / 16_000 for content in contents]


def test_a_port_that_is_taken_is_named() -> None:
    with open_port("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with refused(f"--host 127.0.0.1 --port {port}", "in use"):
            open_port("127.0.0.1", port)
    with refused("--host no.such.host.invalid", "address"):
        open_port("no.such.host.invalid", 0)


def test_the_address_is_one_for_a_browser() -> None:
    for host, shown, local in (
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "[::1]", True),
        ("localhost", "", True),
        ("0.0.0.0", socket.gethostname(), False),
    ):
        with open_port(host, 0) as opened:
            assert is_loopback(opened) is local
            port = opened.getsockname()[1]
            assert shown == "" or address_of(opened) == f"http://{shown}:{port}/"
