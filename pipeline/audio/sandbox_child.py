"""The child process of `pipeline.audio.sandbox`: decodes what its parent sends, under limits.

Samples are sent as float32 in native order. A file that the parent has not read whole is read
through it, a request for each stretch.
"""

import io
import os
import resource
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, BinaryIO, cast

import numpy as np

from pipeline.audio.decode import Decoded, decode_audio
from pipeline.audio.messages import receive, send
from pipeline.audio.recording import SoundBlock, decode_stream
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings

Decode = Callable[..., Decoded]
Stream = Callable[..., Generator[SoundBlock, None, None]]

_ALARM_MARGIN_S = 10.0
_READ_BYTES = 2**23
"""What is read of a large file at once."""


def run(memory_bytes: int, decode: Decode = decode_audio, stream: Stream = decode_stream) -> None:
    """Main loop: answer requests until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, by closing the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # A parent that fails while this starts waits for no answer.
    gone = suppress(BrokenPipeError)
    # Output of libraries must not mix with the answers.
    with gone, os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        send(answers, {})
        while True:
            try:
                request, data = receive(sys.stdin.buffer)
            except EOFError:
                return
            if request["is_stream"]:
                _answer_stream(request, data, answers, stream)
            else:
                with _alarm(request):
                    answer, body = _answer(request, data, decode)
                send(answers, answer, body)


@contextmanager
def _alarm(request: dict[str, Any]) -> Iterator[None]:
    """End this process if it hangs and its parent is gone; the parent kills it earlier."""
    signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _ALARM_MARGIN_S)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(request: dict[str, Any], data: bytes, decode: Decode) -> tuple[dict[str, Any], bytes]:
    try:
        decoded = decode(data, DecodeSettings(**request["settings"]), **request["stretch"])
    except (RejectError, MemoryError) as error:
        return _rejection(error), b""
    notes = {
        "file_level_dbfs": decoded.file_level_dbfs,
        "file_rate_hz": decoded.file_rate_hz,
        "repaired": decoded.repaired,
    }
    return {"notes": notes}, _to_bytes(decoded.samples)


def _answer_stream(
    request: dict[str, Any], data: bytes, answers: IO[bytes], stream: Stream
) -> None:
    source: bytes | BinaryIO = data
    if request["size_bytes"] is not None:
        file = _FileOfParent(request, answers)
        source = cast(BinaryIO, io.BufferedReader(file, _READ_BYTES))
    settings = DecodeSettings(**request["settings"])
    blocks = stream(source, settings, **request["stretch"])
    while True:
        try:
            with _alarm(request):
                block = next(blocks, None)
        except (RejectError, MemoryError) as error:
            return send(answers, _rejection(error))
        if block is None:
            return send(answers, {"is_end": True})
        send(answers, {"file_rate_hz": block.file_rate_hz}, _to_bytes(block.samples))


def _rejection(error: RejectError | MemoryError) -> dict[str, Any]:
    if isinstance(error, RejectError):
        return {"stage": error.stage, "reason": error.reason}
    return {"stage": "decode", "reason": "decoding needed more memory than allowed"}


def _to_bytes(samples: np.ndarray[Any, Any]) -> bytes:
    return samples.astype(np.float32, copy=False).tobytes()


class _FileOfParent(io.RawIOBase):
    """A file that the parent has open."""

    def __init__(self, request: dict[str, Any], answers: IO[bytes]) -> None:
        super().__init__()
        self._request, self._answers, self._position = request, answers, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        self._position = start[whence] + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        num_bytes = max(0, min(len(buffer), self._size_bytes - self._position))
        if num_bytes:
            signal.setitimer(signal.ITIMER_REAL, 0)  # the storage may be slow
            send(self._answers, {"read_at": self._position, "read_bytes": num_bytes})
            _, data = receive(sys.stdin.buffer)
            signal.setitimer(signal.ITIMER_REAL, self._request["timeout_s"] + _ALARM_MARGIN_S)
            num_bytes = len(data)
            buffer[:num_bytes] = data
        self._position += num_bytes
        return num_bytes

    @property
    def _size_bytes(self) -> int:
        return int(self._request["size_bytes"])


if __name__ == "__main__":
    run(int(sys.argv[1]))
