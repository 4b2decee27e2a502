"""Limits on the audio that is decoded."""

from dataclasses import dataclass

from pipeline.errors import SettingValueError


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeSettings:
    """Limits on decoding, so that no single file exhausts a worker's memory or time."""

    max_duration_s: float = 600.0
    """Longest clip, in seconds; longer clips are rejected."""
    max_file_bytes: int = 500_000_000
    """Largest file read for a clip, in bytes; for audio in Parquet, the audio in its row."""
    max_values: int = 2**28
    """Most samples decoded for a clip, over all channels: more than 10 minutes of 8 channels at
    48 kHz."""

    def __post_init__(self) -> None:
        if not 0 < self.max_duration_s <= 86_400:
            raise SettingValueError(
                "max_duration_s", f"must be above 0 and at most 86400, got {self.max_duration_s}"
            )
        for name in ("max_file_bytes", "max_values"):
            if getattr(self, name) < 1:
                raise SettingValueError(name, f"must be at least 1, got {getattr(self, name)}")
