"""Settings that determine the values of a fbank. Loads without PyTorch, like all settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from pipeline.errors import SettingValueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


Count = TypeVar("Count", int, "NDArray[np.int64]", "Tensor")

PUBLISHED_NORMS = {
    "AudioSet": (-4.2677393, 4.5689974),
    "ESC-50": (-6.6268077, 5.358466),
    "Speech Commands V2": (-6.845978, 5.5654526),
}
"""Mean and standard deviation of log-mels with which AST's authors normalised each data set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FbankSettings:
    """Settings that determine the values of a fbank; written into the data-set card."""

    sample_rate_hz: int = 16_000
    """Rate to which the waveform is resampled, in Hz."""
    num_mels: int = 128
    """Number of mel bins, F."""
    frame_length_ms: int = 25
    """Window length, in milliseconds."""
    frame_shift_ms: int = 10
    """Distance between the starts of neighbouring frames, in milliseconds."""
    low_hz: float = 20.0
    """Lower edge of the lowest mel filter, in Hz; the upper edge of the highest is Nyquist."""
    preemphasis: float = 0.97
    """Coefficient of the first-order high-pass."""

    def __post_init__(self) -> None:
        if not 1_000 <= self.sample_rate_hz <= 192_000:
            raise SettingValueError(
                "sample_rate_hz", f"must be from 1000 to 192000, got {self.sample_rate_hz}"
            )
        if not 4 <= self.num_mels <= 1024:
            raise SettingValueError("num_mels", f"must be from 4 to 1024, got {self.num_mels}")
        for name in ("frame_length_ms", "frame_shift_ms"):
            if not 1 <= getattr(self, name) <= 1000:
                raise SettingValueError(name, f"must be from 1 to 1000, got {getattr(self, name)}")
        if not 0 <= self.low_hz < self.sample_rate_hz / 2:
            raise SettingValueError("low_hz", f"must be from 0 to below Nyquist, got {self.low_hz}")
        if not 0 <= self.preemphasis <= 1:
            raise SettingValueError("preemphasis", f"must be from 0 to 1, got {self.preemphasis}")

    @property
    def frame_length(self) -> int:
        """Samples in a window."""
        return self.sample_rate_hz * self.frame_length_ms // 1000

    @property
    def frame_shift(self) -> int:
        """Samples between the starts of neighbouring frames."""
        return self.sample_rate_hz * self.frame_shift_ms // 1000

    @property
    def fft_length(self) -> int:
        """Points of the FFT, K: the next power of two."""
        return 1 << (self.frame_length - 1).bit_length()

    def samples_in(self, duration_s: float) -> int:
        """Number of samples in `duration_s` seconds."""
        return round(duration_s * self.sample_rate_hz)

    def samples_for(self, num_frames: int) -> int:
        """The fewest samples that hold `num_frames` frames, at least one."""
        return self.frame_length + (num_frames - 1) * self.frame_shift

    def num_frames(self, num_samples: Count) -> Count:
        """Frames that fit entirely in `num_samples` samples (Kaldi's "snip edges")."""
        count = 1 + (num_samples - self.frame_length) // self.frame_shift
        return count * (count > 0)
