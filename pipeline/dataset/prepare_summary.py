"""What the last run of `prepare` did: `prepare_summary.json`, beside the card.

Kept apart from the card, which is the same whenever and wherever it is written.
"""

from dataclasses import asdict, dataclass

from pipeline import storage

NAME = "prepare_summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSummary:
    """What a run of `prepare` did."""

    output: str
    num_clips: int
    num_rejects: int
    rejects_by_reason: dict[str, int]
    num_clipped_clips: int
    """Clips stored as audio that exceeded full scale; the index has the samples of each."""
    num_repaired_clips: int
    """Clips of odd files that play nevertheless; the index says what was odd."""
    num_faded_clips: int
    """Clips 20 dB or more below the level of their files, usually of opposite channels, which
    cancel each other in the mean."""
    num_shards: int
    num_shards_built: int
    """Shards built by this run; the others were finished before."""
    num_clips_built: int
    size_bytes: int
    fetched_bytes: int
    """Size of the audio that the shards were made from."""
    audio_s: float
    wall_s: float
    clips_per_s: float
    """Clips built by this run (rejected ones too) over its wall time."""
    stages_s: dict[str, float]
    """Task seconds in each stage, summed over all shards."""


def write_summary(summary: PrepareSummary) -> None:
    """Write it into the data set's folder."""
    storage.write_json(storage.join(summary.output, NAME), asdict(summary))


def read_summary(dataset_path: str) -> PrepareSummary | None:
    """Read it; None if it is not there.

    Raises:
        UserError: it is damaged.
    """
    path = storage.join(dataset_path, NAME)
    try:
        return storage.read_document(path, PrepareSummary, "remove it, or run `prepare` again")
    except FileNotFoundError:
        return None
