"""What audio is decoded, and how."""

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import SettingValueError, check_one_of

Channel = Literal["mean", "left", "right"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """Which files are decoded, and which of their channels.

    The limits keep a single file from exhausting a worker's memory or time.
    """

    max_duration_s: float = 600.0
    """Longest clip, in seconds; longer clips are rejected."""
    max_file_bytes: int = 500_000_000
    """Largest file read for a clip, in bytes; for audio in Parquet, the audio in its row."""
    max_values: int = 2**28
    """Most samples decoded for a clip, over all channels: more than 10 minutes of 8 channels at
    48 kHz."""
    channel: Channel = "mean"
    """Channel used of a file with several: their mean, in which opposite channels cancel each
    other, or the first (left) or the second (right)."""
    strict: bool = False
    """Whether odd files are rejected although no audio is missing, such as an MP3 with other bytes
    before its first frame; otherwise the index says what was odd."""

    def __post_init__(self) -> None:
        if not 0 < self.max_duration_s <= 86_400:
            raise SettingValueError(
                "max_duration_s", f"must be above 0 and at most 86400, got {self.max_duration_s}"
            )
        check_one_of(self, get_args(Channel), "channel")
        for name in ("max_file_bytes", "max_values"):
            if getattr(self, name) < 1:
                raise SettingValueError(name, f"must be at least 1, got {getattr(self, name)}")
