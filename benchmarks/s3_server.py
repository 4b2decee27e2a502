"""A local S3 server with the latency of a remote one.

In: a folder whose sub-folders are the buckets, and a latency, which may change while it runs.
`rclone serve s3` serves the folder. A proxy in front of it, in a separate process, delays every
piece of a request by the latency, however many requests are in flight. Out: `AWS_*` variables that
point there.
"""

import asyncio
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

KEY, SECRET = "test", "secret"
_WRONG_STATUS, _RIGHT_STATUS = b"HTTP/1.1 200 OK", b"HTTP/1.1 206 Partial Content"
"""Of a range: clients refuse rclone's."""


@contextmanager
def serve_s3(folder: Path) -> Iterator["Synchronized[float]"]:
    """Serve a folder, and point this process and its children there.

    Yields:
        The latency in seconds, 0 at first; set its `value`.
    """
    server_port = _free_port()
    address = f"127.0.0.1:{server_port}"
    context = multiprocessing.get_context("spawn")
    latency_s = context.Value("d", 0.0)
    ours, theirs = context.Pipe()
    proxy = context.Process(target=_run_proxy, args=(server_port, latency_s, theirs), daemon=True)
    rclone = Path(sys.executable).with_name("rclone")
    # Without a buffer and a hash it reads no more than a range.
    options = ["--addr", address, "--auth-key", f"{KEY},{SECRET}", "--buffer-size=0"]
    options += ["--etag-hash="]
    server = subprocess.Popen([rclone, "serve", "s3", *options, folder], stderr=subprocess.DEVNULL)
    try:
        proxy.start()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        _wait_for(server_port)
        yield latency_s
    finally:
        proxy.terminate()
        server.terminate()
        server.wait()
        proxy.join()


class _Client(asyncio.Protocol):
    """The client's side: what it sends reaches the server with a delay."""

    def __init__(self, server_port: int, latency_s: "Synchronized[float]") -> None:
        self._server_port = server_port
        self._latency_s = latency_s
        self._pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    def connection_made(self, transport: Any) -> None:
        self._forwarding = asyncio.ensure_future(self._forward(transport))

    def data_received(self, data: bytes) -> None:
        due = time.monotonic() + self._latency_s.value
        self._pieces.put_nowait((due, data))

    def connection_lost(self, error: Exception | None) -> None:
        self._forwarding.cancel()

    async def _forward(self, client: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        server, _ = await loop.create_connection(
            lambda: _Server(client), "127.0.0.1", self._server_port
        )
        try:
            while True:
                due, data = await self._pieces.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                server.write(data)
        finally:
            server.close()


class _Server(asyncio.Protocol):
    """The server's side: its response reaches the client at once."""

    def __init__(self, client: asyncio.Transport) -> None:
        self._client = client

    def data_received(self, data: bytes) -> None:
        head = data.partition(b"\r\n\r\n")[0]
        if data.startswith(_WRONG_STATUS) and b"\r\nContent-Range:" in head:
            data = data.replace(_WRONG_STATUS, _RIGHT_STATUS, 1)
        self._client.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.close()


def _run_proxy(server_port: int, latency_s: "Synchronized[float]", started: Connection) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Client(server_port, latency_s), "127.0.0.1", 0)
        started.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    sys.exit("rclone serve s3 does not answer")
