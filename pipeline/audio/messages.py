"""Messages over a pipe: a line of JSON with the number of bytes that follow, and those bytes."""

import json
from typing import IO, Any


def send(pipe: IO[bytes], header: dict[str, Any], body: bytes = b"") -> None:
    """Write one message."""
    pipe.write(json.dumps({**header, "num_bytes": len(body)}).encode() + b"\n")
    pipe.write(body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Read one message.

    Raises:
        EOFError: the pipe was closed before its end.
    """
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    body = pipe.read(header["num_bytes"])
    if len(body) < header["num_bytes"]:
        raise EOFError
    return header, body
