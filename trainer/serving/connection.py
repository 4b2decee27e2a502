"""A connection that ends when its client is too slow.

uvicorn's own waits for ever for a request to begin, for the rest of a body that was refused, and
for a client that does not read its answer. The body of a request that is not refused has a limit of
its own: see `body`.
"""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S = 10.0
"""Longest time from the start of a connection, or from an answer, until the headers of a request
have arrived; and for the rest of a body whose request was refused."""
READ_TIMEOUT_S = 60.0
"""Longest time in which a client reads nothing of an answer."""


class Connection(H11Protocol):
    """uvicorn's, with limits on time."""

    _until_request: asyncio.TimerHandle | None = None
    _until_read: asyncio.TimerHandle | None = None

    def connection_made(  # type: ignore[override]
        self, transport: asyncio.Transport
    ) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._until_read = self.loop.call_later(READ_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._until_read)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _cancel(self._until_request)
        _cancel(self._until_read)

    def _watch(self) -> None:
        """Start the clock when no request is being answered; stop it when one is."""
        if self.cycle is not None and not self.cycle.response_complete:
            _cancel(self._until_request)
            self._until_request = None
        elif self._until_request is None:
            self._until_request = self.loop.call_later(REQUEST_TIMEOUT_S, self.transport.abort)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
