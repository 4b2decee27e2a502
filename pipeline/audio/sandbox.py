"""Decoding in a separate process: a file that crashes it, or exhausts memory or time, is rejected.

A clip's bytes go over a pipe to a child process, which runs `decode_audio` under a memory limit;
the samples come back over another pipe, bit for bit as from `decode_audio` in this process. Each
message is a line of JSON with the number of bytes that follow, and those bytes; samples are float32
in native order. When a child dies, the clip is rejected with the cause and the next clip goes to a
new child.

The child is spawned, not forked, and loads neither torch nor Ray.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from pipeline.audio.decode import Decoded, decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings

_COMMAND = (sys.executable, "-m", "pipeline.audio.sandbox")
_ALARM_MARGIN_S = 10.0


class DecoderProcess:
    """Decodes clips one by one in a child process, which is restarted whenever it dies.

    Args:
        memory_bytes: memory limit of the child, some 200 MB of which it needs itself.
        timeout_s: the longest time for one clip.
        command: starts another child than the usual one; gets `memory_bytes` as an argument, and
            must call `run`.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 2 * 2**30,
        timeout_s: float = 60.0,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        self.timeout_s = timeout_s
        self.num_starts = 0
        """Children started so far."""
        self._command = [*command, str(memory_bytes)]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    @property
    def pid(self) -> int | None:
        """The child's process id, None before the first clip."""
        return None if self._child is None else self._child.pid

    def decode_audio(
        self,
        data: bytes,
        settings: DecodeSettings,
        *,
        sample_rate_hz: int,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Decoded:
        """As `pipeline.audio.decode.decode_audio`; a clip that kills the child is rejected, too.

        Raises:
            RejectError: as in this process, or the child crashed or ran out of time or memory.
            RuntimeError: the child cannot be started.
        """
        request = {
            "settings": asdict(settings),
            "sample_rate_hz": sample_rate_hz,
            "start_s": start_s,
            "end_s": end_s,
            "timeout_s": self.timeout_s,
        }
        try:
            answer, body = self._ask(request, data)
        except _ChildDiedError:
            # Another process may have caused it: only a second death is blamed on the clip.
            try:
                answer, body = self._ask(request, data)
            except _ChildDiedError as death:
                raise RejectError("decode", f"the decoder crashed ({death})") from death
        if "reason" in answer:
            raise RejectError(answer["stage"], answer["reason"])
        samples = np.frombuffer(body, np.float32).copy()
        return Decoded(samples=samples, **answer["notes"])

    def _ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        child = self._running_child()
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self.timeout_s, expire)
        timer.start()
        try:
            _send(child.stdin, request, data)
            return _receive(child.stdout)
        except (OSError, EOFError) as error:
            self._child = None
            status = _reap(child)
            if late.is_set():
                reason = f"decoding took longer than {self.timeout_s:g} s"
                raise RejectError("decode", reason) from error
            raise _ChildDiedError(_describe(status)) from error
        finally:
            timer.cancel()

    def _running_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        child = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Each BLAS thread would take memory, and nothing here uses them.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        )
        self._child = child
        self.num_starts += 1
        assert child.stdout is not None
        try:
            _receive(child.stdout)  # the child is ready
        except EOFError as error:
            self._child = None
            status = _describe(_reap(child))
            raise RuntimeError(f"the decoder process cannot start ({status})") from error
        return child

    def _end(self) -> None:
        if self._child is not None:
            _reap(self._child)
            self._child = None


class _ChildDiedError(Exception):
    """The child ended without an answer."""


def _reap(child: subprocess.Popen[bytes]) -> int:
    """End the child, if it still runs, and return its status."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdout.close()
    with suppress(BrokenPipeError):
        child.stdin.close()
    try:
        return child.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.kill()
        return child.wait()


def _describe(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _send(pipe: IO[bytes], header: dict[str, Any], body: bytes) -> None:
    pipe.write(json.dumps({**header, "num_bytes": len(body)}).encode() + b"\n")
    pipe.write(body)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    line = pipe.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    header = json.loads(line)
    body = pipe.read(header["num_bytes"])
    if len(body) < header["num_bytes"]:
        raise EOFError
    return header, body


def run(memory_bytes: int, decode: Callable[..., Decoded] = decode_audio) -> None:
    """Main loop of the child: answer requests until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, by closing the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    # Output of libraries must not mix with the answers.
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        _send(answers, {}, b"")
        while True:
            try:
                request, data = _receive(sys.stdin.buffer)
            except EOFError:
                return
            # The parent kills earlier; this is for a child whose parent is gone.
            signal.setitimer(signal.ITIMER_REAL, request["timeout_s"] + _ALARM_MARGIN_S)
            _send(answers, *_answer(request, data, decode))


def _answer(
    request: dict[str, Any], data: bytes, decode: Callable[..., Decoded]
) -> tuple[dict[str, Any], bytes]:
    try:
        decoded = decode(
            data,
            DecodeSettings(**request["settings"]),
            sample_rate_hz=request["sample_rate_hz"],
            start_s=request["start_s"],
            end_s=request["end_s"],
        )
        notes = {
            "file_level_dbfs": decoded.file_level_dbfs,
            "file_rate_hz": decoded.file_rate_hz,
            "repaired": decoded.repaired,
        }
        return {"notes": notes}, decoded.samples.astype(np.float32, copy=False).tobytes()
    except RejectError as error:
        return {"stage": error.stage, "reason": error.reason}, b""
    except MemoryError:
        return {"stage": "decode", "reason": "decoding needed more memory than allowed"}, b""


if __name__ == "__main__":
    run(int(sys.argv[1]))
