"""Clips whose files have a lower sample rate than the data set: their upper mel bins are empty.

In: the clips of each lower rate, as the card counts them. Out: a note; empty if there are none.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.dataset.prepared import PreparedDataset
from pipeline.shards.parts import Part

_logger = logging.getLogger(__name__)


def count_low_rates(parts: Iterable[Part], index: pa.Table) -> dict[str, int]:
    """Clips in the index of each rate in Hz below the data set's."""
    # An older shard may hold a clip of the same id, with other audio.
    low = {
        (part.tar.name, clip_id): rate
        for part in parts
        if part.tar
        for clip_id, rate in part.low_rates_hz.items()
    }
    if not low:
        return {}
    used = zip(index["shard"].to_pylist(), index["id"].to_pylist(), strict=True)
    counts = Counter(low[key] for key in used if key in low)
    return {str(rate): counts[rate] for rate in sorted(counts)}


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
