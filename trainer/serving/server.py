"""The door on a port, for the length of a block: a thread with its own event loop."""

import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp

from pipeline.errors import UserError
from trainer.serving.connection import Connection

_BACKLOG = 1_024
_LINGER_S = 5
"""For answers that are on their way when the server ends."""


def open_port(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that a port that is taken is known before a model is loaded.

    Raises:
        UserError: no such address, or the port is taken or not allowed.
    """
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}", "no such address") from error
    opened = socket.socket(family, kind)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        where = f"--host {host} --port {port}"
        raise UserError(where, f"cannot listen there ({error.strerror})", "give others") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """The address for a browser."""
    host, port = opened.getsockname()[:2]
    if ip_address(host).is_unspecified:
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ip_address(opened.getsockname()[0]).is_loopback


@contextmanager
def serving(app: ASGIApp, opened: socket.socket) -> Iterator[threading.Thread]:
    """Serve in a thread, which ends with the block; should it end earlier, something is wrong."""
    # The door logs requests itself, and faults of clients are no news.
    for name in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        # By h11, which unlike httptools limits the headers of a request: to 64 KB.
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_LINGER_S,
    )
    server = uvicorn.Server(config)
    opened.listen(_BACKLOG)
    thread = threading.Thread(
        target=server.run, kwargs={"sockets": [opened]}, name="door", daemon=True
    )
    thread.start()
    try:
        yield thread
    finally:
        server.should_exit = True
        thread.join(_LINGER_S + 5)
        opened.close()
