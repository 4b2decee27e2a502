"""Public data sets for `download`: their addresses, and how to check that they are complete."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicDataset:
    """Where a data set is published, and how to check that a download is complete."""

    url: str
    approximate_bytes: int
    """Approximate size of the archive, for servers that do not give it."""
    clips: str
    """Pattern of the clips' paths."""
    num_clips: int
    sha256: str | None = None
    """Checksum of the archive, if it never changes."""


DATASETS = {
    "esc50": PublicDataset(
        url="https://github.com/karoldvl/ESC-50/archive/master.zip",
        approximate_bytes=600_000_000,
        clips="audio/*.wav",
        num_clips=2000,
    ),
    "speech-commands": PublicDataset(
        url="http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
        approximate_bytes=2_400_000_000,
        clips="[!_]*/*.wav",
        num_clips=105_829,
        sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    ),
}
