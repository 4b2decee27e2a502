"""Settings that determine the bytes of a prepared data set."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from pipeline.audio.settings import DecodeSettings
from pipeline.errors import SettingValueError, check_one_of
from pipeline.fbank_settings import FbankSettings

BYTES_PER_MB = 1_000_000
"""Of the limit on files, which the command line takes in MB."""

READS_AHEAD = 16
"""Default number of files that a task fetches at once, ahead of the computation."""

Store = Literal["fbank", "audio"]
STORES: tuple[Store, ...] = get_args(Store)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """Settings that determine the bytes of a prepared data set."""

    fbank: FbankSettings = field(default_factory=FbankSettings)
    """The features."""
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    """Limits on the audio."""
    clips_per_shard: int = 512
    """Most clips in a shard; small data sets get smaller shards, so that 16 can be built at
    once."""
    store: Store = "fbank"
    """What is stored of a clip: "fbank" (float16) or "audio" (16-bit FLAC), from which training
    mixes waveforms and computes their fbanks."""

    def __post_init__(self) -> None:
        check_one_of(self, STORES, "store")
        if not 1 <= self.clips_per_shard <= 100_000:
            raise SettingValueError(
                "clips_per_shard", f"must be from 1 to 100000, got {self.clips_per_shard}"
            )
