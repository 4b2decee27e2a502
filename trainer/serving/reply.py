"""An answer as it goes back to the client, and its JSON."""

import json
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What goes back to the client."""

    status: int
    body: bytes
    """JSON."""


def to_json(document: object) -> bytes:
    """Compact JSON; float32 in as few digits as tell them apart."""
    text = json.dumps(
        document, default=_to_list, allow_nan=False, ensure_ascii=False, separators=(",", ":")
    )
    return text.encode()


def error_json(reason: str) -> bytes:
    """The body of a refusal."""
    return to_json({"error": " ".join(reason.split())})


def _to_list(values: object) -> list[float]:
    assert isinstance(values, np.ndarray)
    return [float(str(value)) for value in values]
