"""What a run needs of a tracker's client."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

PROJECT = "ast-ray"
"""Project or experiment of the runs, where the user's environment names no other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run, as a tracker lists it."""

    path: str
    """Its folder."""
    name: str
    recipe: str
    settings: dict[str, Any]
    """`section.key` and value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Values of some curves at one step."""

    step: int
    values: dict[str, float]


class Client(Protocol):
    """A tracker. Its methods may raise anything, and wait for a server."""

    def open(self, run: TrackedRun, tracker_id: str) -> str:
        """Begin a run, or go on with the one of this id; returns its id."""

    def send(self, rows: Sequence[Row]) -> None:
        """Add to the curves, in the order of their steps."""

    def close(self, *, finished: bool) -> None:
        """Say that the run is finished, or has stopped."""
