"""The body of a request, within limits on size, time, and on what all requests hold together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from trainer.serving.refusal import RefusedError
from trainer.serving.settings import ServeLimits

_RETRY = {"Retry-After": "1"}


class Bodies:
    """Reads bodies, and counts what is held of them. Belongs to one event loop."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._num, self._held_bytes = 0, 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts as held for the length of the block.

        Raises:
            RefusedError: it is empty, too large, too slow or of a wrong kind; or too much is held.
            ClientDisconnect: the client is gone.
        """
        self._check_headers(request)
        if self._num >= self._limits.max_in_flight:
            raise _busy()
        self._num += 1
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                async for chunk in request.stream():
                    self._held_bytes += len(chunk)
                    body += chunk
                    if len(body) > self._limits.max_bytes:
                        raise self._too_large()
                    if self._held_bytes > self._limits.max_held_bytes:
                        raise _busy()
            if not body:
                raise RefusedError(400, "the body is empty; send an audio file")
            yield bytes(body)
        except TimeoutError as error:
            limit = f"{self._limits.body_timeout_s:g} s"
            raise RefusedError(408, f"the body did not arrive within {limit}") from error
        finally:
            self._num -= 1
            self._held_bytes -= len(body)

    def _check_headers(self, request: Request) -> None:
        """Refuse what the headers already tell, before anything is read."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind.startswith("multipart/"):
            raise RefusedError(
                415, "a form was sent; send the file itself as the body (curl --data-binary @FILE)"
            )
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "compressed bodies are not read; send the file as it is")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limits.max_bytes:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the body is larger than {self._limits.max_mb:g} MB")


def _busy() -> RefusedError:
    return RefusedError(503, "too many requests at once; try again", headers=_RETRY)
