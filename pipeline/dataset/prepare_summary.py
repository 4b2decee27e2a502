"""What the last run of `prepare` did: `prepare_summary.json`, beside the card.

Kept apart from the card, which is the same whenever and wherever it is written.
"""

from dataclasses import asdict, dataclass, field

from pipeline import storage

NAME = "prepare_summary.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSummary:
    """What a run of `prepare` did."""

    output: str
    num_clips: storage.Count
    num_rejects: storage.Count
    rejects_by_reason: dict[str, storage.Count]
    num_clipped_clips: storage.Count
    """Clips stored as audio that exceeded full scale; the index has the samples of each."""
    num_repaired_clips: storage.Count
    """Clips of odd files that play nevertheless; the index says what was odd."""
    num_faded_clips: storage.Count
    """Clips 20 dB or more below the level of their files, usually of opposite channels, which
    cancel each other in the mean."""
    low_rate_note: str = ""
    """About clips of files with a sample rate below the data set's; empty if there are none."""
    file_rates: dict[str, storage.Count] = field(default_factory=dict)
    """Clips by the sample rate of their files in Hz; empty if unknown."""
    num_shards: storage.Count
    num_shards_built: storage.Count
    """Shards built by this run; the others were finished before."""
    num_clips_built: storage.Count
    size_bytes: storage.Count
    fetched_bytes: storage.Count
    """Size of the audio that the shards were made from."""
    audio_s: storage.Amount
    wall_s: storage.Amount
    clips_per_s: storage.Amount
    """Clips built by this run (rejected ones too) over its wall time."""
    stages_s: dict[str, storage.Amount]
    """Task seconds in each stage, summed over all shards."""
    changes: str = ""
    """What this run changed in an earlier data set, in words; empty: nothing."""


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


def is_damaged(dataset_path: str) -> bool:
    """Whether a data set has a summary that cannot be read."""
    try:
        storage.parse_document(storage.read_bytes(storage.join(dataset_path, NAME)), PrepareSummary)
    except FileNotFoundError:
        return False
    except (storage.DocumentError, storage.NoFileError):
        return True
    return False
