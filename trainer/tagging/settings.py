"""How recordings are cut into windows and what is kept of their scores. Loads without PyTorch."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from pipeline.audio.settings import Channel
from pipeline.errors import SettingValueError, UserError

Format = Literal["csv", "jsonl", "audacity", "raven"]
"""What tags can be written as besides Parquet."""

_HOST = re.compile(r"[A-Za-z0-9.\-_:\[\]]+")

MAX_WINDOW_S = 3600.0
_DEFAULT_TOP = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowSettings:
    """Length of a window and distance between the starts of neighbouring ones, in seconds."""

    length_s: float | None = None
    """None: the length of the model's input."""
    hop_s: float | None = None
    """None: half the length."""

    def __post_init__(self) -> None:
        for name in ("length_s", "hop_s"):
            value = getattr(self, name)
            if value is not None and not 0.05 <= value <= MAX_WINDOW_S:
                raise SettingValueError(
                    name, f"must be from 0.05 to {MAX_WINDOW_S:g} s, got {value:g}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepSettings:
    """Which scores are written."""

    top: int | None = None
    """The highest so many; None: five, or with a threshold all above it."""
    threshold: float | None = None
    """Only scores of at least this; None: all."""
    all_scores: bool = False
    """Also every score, as float16."""
    embeddings: bool = False
    """Also the class-token embedding, as float16."""

    def __post_init__(self) -> None:
        if self.top is not None and self.top < 1:
            raise UserError("--top", f"must be at least 1, got {self.top}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UserError("--threshold", f"must be from 0 to 1, got {self.threshold:g}")

    @property
    def most(self) -> int | None:
        """The most tags of a window; None: no limit."""
        if self.top is None and self.threshold is None:
            return _DEFAULT_TOP
        return self.top


@dataclass(frozen=True, kw_only=True, slots=True)
class TagSettings:
    """What decides the numbers and rows of the tags."""

    windows: WindowSettings = WindowSettings()
    keep: KeepSettings = KeepSettings()
    channel: Channel = "mean"
    """Channel used of a file with several."""


def check_audio_url(prefix: str) -> str:
    """The part of a page's policy that lets it play sounds below an address.

    Args:
        prefix: what precedes the ids of recordings.

    Raises:
        ValueError: it is neither an address by http or https nor a relative path.
    """
    parts = urlsplit(prefix)
    is_clean = bool(prefix) and not re.search(r"[\s\x00-\x1f\x7f]", prefix)
    if is_clean and parts.scheme in ("http", "https") and _HOST.fullmatch(parts.netloc):
        return f"{parts.scheme}://{parts.netloc}"
    if is_clean and not parts.scheme and not parts.netloc:
        return "'self' file:"
    raise ValueError(
        f"must be an address such as https://HOST/FOLDER/ or a relative path, got {prefix!r}"
    )
