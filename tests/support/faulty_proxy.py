"""A proxy to an S3 server that spoils a share of the responses, the same ones in every run.

Which request is spoiled how depends on the seed, the request and how often it was asked, not on the
order in which threads and processes ask.
"""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("slow down", "reset", "lost answer", "reset in body", "cut", "stall")
"""503; no answer, asked and not; half an answer, with and without an error; half and then late."""

_ERRORS = {
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "AccessDenied", "Access Denied"),
    "missing": (404, "NoSuchKey", "The specified key does not exist."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "expired 403": (403, "ExpiredToken", "The provided token has expired."),
}
_PASSED_ON = (
    "content-length",
    "content-type",
    "content-range",
    "etag",
    "last-modified",
    "location",
)


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Which faults hit how many of the requests."""

    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    seed: int = 0
    stall_s: float = 0.2
    only: str = ""
    """A pattern of the requests that may be spoiled, each as `METHOD /key?query`."""
    after: int = 0
    """Requests that pass before."""
    at_most: int = 10**9
    """Requests that are spoiled; all others pass again."""

    def choose(self, request: str, number: int) -> str | None:
        """How to spoil the request, when it is asked for the `number`th time."""
        if not re.search(self.only, request):
            return None
        rng = random.Random(f"{self.seed} {request} {number}")
        return rng.choice(self.kinds) if rng.random() < self.share else None


class FaultyProxy(ThreadingHTTPServer):
    """Passes requests on to `upstream`; what it spoils may be changed at any time."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self._lock = threading.Lock()
        self.spoil(Faults())

    def spoil(self, faults: Faults) -> None:
        """Use these faults from now on and restart the counts."""
        with self._lock:
            self.faults = faults
            self.injected: Counter[str] = Counter()
            self._asked: Counter[str] = Counter()

    def fault_of(self, request: str) -> str | None:
        """Count a request, and say how to spoil it."""
        with self._lock:
            self._asked[request] += 1
            faults = self.faults
            if self._asked.total() <= faults.after or self.injected.total() >= faults.at_most:
                return None
            fault = faults.choose(request, self._asked[request])
            if fault:
                self.injected[fault] += 1
            return fault

    def handle_error(self, *_: object) -> None:
        """Ignore clients that hang up."""


@contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy in threads of this process."""
    with FaultyProxy(upstream) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def _answer(self) -> None:
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = re.sub("^/[^/?]*", "", self.path)  # the bucket has another name in every run
        # Not the range: plans and part files hold names and times, so their sizes differ a little.
        fault = self.server.fault_of(f"{self.command} {key}")
        if fault in _ERRORS:
            self._refuse(*_ERRORS[fault])
        elif fault == "reset":
            self._reset()
        else:
            self._pass_on(sent, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

    def _pass_on(self, sent: bytes, fault: str | None) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, sent, dict(self.headers))
            answer = upstream.getresponse()
            body = answer.read()
        finally:
            upstream.close()
        if fault == "lost answer":
            self._reset()
            return
        if fault == "stall" and not body:
            time.sleep(self.server.faults.stall_s)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() in _PASSED_ON or name.lower().startswith("x-amz-"):
                self.send_header(name, value)
        self.end_headers()
        if fault is None:
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        if fault == "stall" and body:
            time.sleep(self.server.faults.stall_s)
        if fault == "reset in body":
            self._reset()
        self.close_connection = True

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        # Closed so, and with nothing left to send, the other side sees a reset connection.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""
