"""A request that is refused: an HTTP status and one line for the client."""


class RefusedError(Exception):
    """The client's request cannot be answered."""

    def __init__(self, status: int, reason: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason
        self.headers = headers or {}
