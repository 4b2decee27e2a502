"""Sample rates of the files that clips are from; below the data set's, upper mel bins are empty.

In: the records of the shards. Out: clips of each rate, and a note on those of lower rates.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.dataset.prepared import PreparedDataset
from pipeline.shards.parts import Part

_logger = logging.getLogger(__name__)


def count_rates(
    parts: Iterable[Part], index: pa.Table, sample_rate_hz: int
) -> tuple[dict[str, int], bool]:
    """Clips in the index by the rate of their files in Hz, the lowest first.

    Args:
        parts: the records of the shards.
        index: of the data set.
        sample_rate_hz: the data set's, which the records leave out.

    Returns:
        The counts, and whether they are of all clips: an older program did not write rates.
    """
    tars = [part for part in parts if part.tar]
    # An older shard may hold a clip of the same id, with other audio.
    others = {
        (part.tar and part.tar.name, clip_id): rate
        for part in tars
        for clip_id, rate in (part.other_rates_hz or {}).items()
    }
    counts: Counter[int] = Counter()
    if others:
        used = zip(index["shard"].to_pylist(), index["id"].to_pylist(), strict=True)
        counts.update(others[key] for key in used if key in others)
    counts[sample_rate_hz] = index.num_rows - counts.total()
    is_complete = all(part.other_rates_hz is not None for part in tars)
    return {str(rate): counts[rate] for rate in sorted(counts) if counts[rate]}, is_complete


def below(rates: Mapping[str, int], sample_rate_hz: int) -> dict[str, int]:
    """The clips of lower rates than the data set's."""
    return {rate: count for rate, count in rates.items() if int(rate) < sample_rate_hz}


def low_rate_note(low_rates: Mapping[str, int], num_clips: int, sample_rate_hz: int) -> str:
    """How many clips are of a lower rate, and which of their frequencies are empty."""
    if not low_rates:
        return ""
    num_low = sum(low_rates.values())
    what = f"all {num_clips:,}" if num_low == num_clips else f"{num_low:,} of {num_clips:,}"
    rates = [f"{int(rate):,}" for rate in low_rates]
    shown = f"{rates[0]} Hz" if len(rates) == 1 else f"{rates[0]} to {rates[-1]} Hz"
    empty_from = min(map(int, low_rates)) // 2
    return (
        f"{what} clips are of files at {shown}, below {sample_rate_hz:,} Hz: their mel bins above "
        f"{empty_from:,} Hz{' or more' if len(rates) > 1 else ''} are empty; use files of "
        f"{sample_rate_hz:,} Hz or more if there are any"
    )


def note_low_rates(dataset: PreparedDataset) -> None:
    """Say of a data set that it has clips of a lower rate."""
    card = dataset.card
    if note := low_rate_note(card.low_rates, card.num_clips, card.fbank.sample_rate_hz):
        _logger.info("%s: %s", dataset.path, note)
