"""Public data sets that `download` fetches: where they are, and how a whole one is known."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class PublicDataset:
    """Where a data set is published, and how to know that it came over whole."""

    url: str
    approximate_bytes: int
    """Roughly how large the archive is, for servers that do not tell."""
    clips: str
    """A pattern of its clips' paths."""
    num_clips: int
    sha256: str | None = None
    """Of the archive, where it is the same file for ever."""


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
