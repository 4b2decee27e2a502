"""What a server accepts, and what it says of its model. Loads without PyTorch and Ray."""

from dataclasses import dataclass

from pipeline.errors import SettingValueError

PORT = 8000
HOST = "127.0.0.1"
MAX_MB = 50.0
MAX_DURATION_S = 600.0
TOKEN_VARIABLE = "AST_RAY_SERVE_TOKEN"

_HELD_BODIES = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeLimits:
    """What one client can cost."""

    max_mb: float = MAX_MB
    """Largest body, in MB of 1,000,000 bytes."""
    max_duration_s: float = MAX_DURATION_S
    """Longest recording, in seconds."""
    max_windows: int = 2_000
    """Most windows of a recording."""
    max_in_flight: int = 256
    """Most requests that wait for their tags at once."""
    body_timeout_s: float = 60.0
    """Longest time for a body to arrive."""
    answer_timeout_s: float = 300.0
    """Longest time for the model to answer, waiting included."""

    def __post_init__(self) -> None:
        if not 0 < self.max_mb <= 2_000:
            raise SettingValueError("max_mb", f"must be above 0, at most 2000, got {self.max_mb:g}")
        if not 0 < self.max_duration_s <= 86_400:
            raise SettingValueError(
                "max_duration_s", f"must be above 0, at most 86400, got {self.max_duration_s:g}"
            )

    @property
    def max_bytes(self) -> int:
        """Largest body."""
        return round(self.max_mb * 1e6)

    @property
    def max_held_bytes(self) -> int:
        """Most bytes of all bodies that are held at once."""
        return _HELD_BODIES * self.max_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """What clients are told of the model."""

    name: str
    """Last part of the path that it was loaded from."""
    labels: tuple[str, ...]
    window_s: float
    """Length of a window where a request does not choose it; the longest that one may choose."""
    hop_s: float
