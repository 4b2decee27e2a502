"""Decoding in a separate process: a file that crashes it, or exhausts memory or time, is rejected.

A clip's bytes go over a pipe to a child process (`pipeline.audio.sandbox_child`), which decodes
under a memory limit; the samples come back over another pipe, bit for bit as from `decode_audio` or
`decode_stream` in this process. When a child dies, the clip is rejected with the cause and the next
clip goes to a new child.

The child is spawned, not forked, and loads neither torch nor Ray.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from pipeline.audio.decode import Decoded
from pipeline.audio.messages import receive, send
from pipeline.audio.recording import SoundBlock
from pipeline.audio.rejects import RejectError
from pipeline.audio.settings import DecodeSettings

_COMMAND = (sys.executable, "-m", "pipeline.audio.sandbox_child")


class DecoderProcess:
    """Decodes clips one by one in a child process, which is restarted whenever it dies.

    Args:
        memory_bytes: memory limit of the child, some 200 MB of which it needs itself.
        timeout_s: the longest time for one clip, or for one block of a recording.
        command: starts another child than the usual one; gets `memory_bytes` as an argument, and
            must call `sandbox_child.run`.
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
        self._is_ready = False

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
        stretch = {"sample_rate_hz": sample_rate_hz, "start_s": start_s, "end_s": end_s}
        request = {**self._request(settings, stretch), "is_stream": False}
        for is_again in (False, True):
            try:
                self._send(self._running_child(), request, data)
                answer, body = self._receive()
                break
            except _ChildDiedError as death:
                # Another process may have caused it: only a second death is blamed on the clip.
                if is_again:
                    raise RejectError("decode", f"the decoder crashed ({death})") from death
        if "reason" in answer:
            raise RejectError(answer["stage"], answer["reason"])
        samples = np.frombuffer(body, np.float32).copy()
        return Decoded(samples=samples, **answer["notes"])

    def decode_stream(
        self,
        source: bytes | BinaryIO,
        settings: DecodeSettings,
        *,
        sample_rate_hz: int,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> Generator[SoundBlock, None, None]:
        """As `pipeline.audio.recording.decode_stream`, one recording at a time.

        Raises:
            RejectError: as in this process, or the child crashed or ran out of time or memory.
            RuntimeError: the child cannot be started.
        """
        stretch = {"sample_rate_hz": sample_rate_hz, "start_s": start_s, "end_s": end_s}
        data, size_bytes = b"", None
        if isinstance(source, bytes):
            data = source
        else:
            size_bytes = source.seek(0, os.SEEK_END)
        request = {
            **self._request(settings, stretch), "is_stream": True, "size_bytes": size_bytes
        }  # fmt: skip
        num_blocks = 0
        for is_again in (False, True):
            try:
                for number, block in enumerate(self._blocks(request, data, source)):
                    if number >= num_blocks:
                        num_blocks += 1
                        yield block
                return
            except _ChildDiedError as death:
                if is_again:
                    raise RejectError("decode", f"the decoder crashed ({death})") from death

    def _blocks(
        self, request: dict[str, Any], data: bytes, source: bytes | BinaryIO
    ) -> Generator[SoundBlock, None, None]:
        is_over = False
        try:
            child = self._running_child()
            self._send(child, request, data)
            while not is_over:
                answer, body = self._receive()
                if "read_at" in answer:
                    assert not isinstance(source, bytes)
                    source.seek(answer["read_at"])
                    self._send(child, {}, source.read(answer["read_bytes"]))
                elif "file_rate_hz" in answer:
                    samples = np.frombuffer(body, np.float32).copy()
                    yield SoundBlock(samples=samples, file_rate_hz=answer["file_rate_hz"])
                else:
                    is_over = True
            if "reason" in answer:
                raise RejectError(answer["stage"], answer["reason"])
        finally:
            if not is_over and self._child is not None:
                # The caller wants no more, or failed; the child is in the middle of it.
                self._child.kill()
                self._end()

    def start(self) -> None:
        """Start the child, if there is none, without waiting for it to be ready."""
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = self._spawn()
            self._is_ready = False

    def _request(self, settings: DecodeSettings, stretch: dict[str, Any]) -> dict[str, Any]:
        return {"settings": asdict(settings), "stretch": stretch, "timeout_s": self.timeout_s}

    def _send(self, child: subprocess.Popen[bytes], header: dict[str, Any], data: bytes) -> None:
        assert child.stdin is not None
        try:
            send(child.stdin, header, data)
        except OSError as error:
            raise self._death() from error

    def _receive(self) -> tuple[dict[str, Any], bytes]:
        child = self._child
        assert child is not None
        assert child.stdout is not None
        late = threading.Event()

        def expire() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self.timeout_s, expire)
        timer.start()
        try:
            return receive(child.stdout)
        except (OSError, EOFError) as error:
            death = self._death()
            if late.is_set():
                reason = f"decoding took longer than {self.timeout_s:g} s"
                raise RejectError("decode", reason) from error
            raise death from error
        finally:
            timer.cancel()

    def _death(self) -> "_ChildDiedError":
        child, self._child = self._child, None
        assert child is not None
        return _ChildDiedError(_describe(_reap(child)))

    def _running_child(self) -> subprocess.Popen[bytes]:
        self.start()
        child = self._child
        assert child is not None
        if not self._is_ready:
            assert child.stdout is not None
            try:
                receive(child.stdout)
            except EOFError as error:
                raise RuntimeError(f"the decoder process cannot start ({self._death()})") from error
            self._is_ready = True
        return child

    def _spawn(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).resolve().parents[2])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.num_starts += 1
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Each BLAS thread would take memory, and nothing here uses them.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
        )

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
