"""Sample rates of the files that clips are from; below the data set's, upper mel bins are empty.

In: the records of the shards. Out: clips of each rate, and a note on those of lower rates.
"""

import logging
from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from pipeline.dataset.prepared import PreparedDataset
from pipeline.shards.parts import Part
from pipeline.terminal.units import counted

_logger = logging.getLogger(__name__)


class RateCounts:
    """Clips in the index by the rate of their files in Hz."""

    def __init__(self, sample_rate_hz: int) -> None:
        """`sample_rate_hz`: the data set's, which the records of the shards leave out."""
        self._sample_rate_hz = sample_rate_hz
        self._others: Counter[int] = Counter()
        self.is_complete = True
        """Whether the counts are of all clips: an older program did not write rates."""

    def add(self, part: Part, ids: pa.ChunkedArray) -> None:
        """Count the clips of a shard that are in the index."""
        rates = part.other_rates_hz
        self.is_complete = self.is_complete and rates is not None
        if rates:
            self._others.update(rates[clip_id] for clip_id in ids.to_pylist() if clip_id in rates)

    def counts(self, num_clips: int) -> dict[str, int]:
        """The counts of `num_clips` in all, the lowest rate first."""
        counts = Counter(self._others)
        counts[self._sample_rate_hz] = num_clips - counts.total()
        return {str(rate): counts[rate] for rate in sorted(counts) if counts[rate]}


def below(rates: Mapping[str, int], sample_rate_hz: int) -> dict[str, int]:
    """The clips of lower rates than the data set's."""
    return {rate: count for rate, count in rates.items() if int(rate) < sample_rate_hz}


def low_rate_note(low_rates: Mapping[str, int], num_clips: int, sample_rate_hz: int) -> str:
    """How many clips are of a lower rate, and which of their frequencies are empty."""
    if not low_rates:
        return ""
    num_low = sum(low_rates.values())
    share = f"{num_low:,} of " if num_low < num_clips else "all " if num_clips > 1 else ""
    what = f"{share}{counted(num_clips, 'clip')} {'is' if num_low == 1 else 'are'}"
    rates = [f"{int(rate):,}" for rate in low_rates]
    shown = f"{rates[0]} Hz" if len(rates) == 1 else f"{rates[0]} to {rates[-1]} Hz"
    empty_from = min(map(int, low_rates)) // 2
    return (
        f"{what} of files at {shown}, below {sample_rate_hz:,} Hz: mel bins above "
        f"{empty_from:,} Hz{' or more' if len(rates) > 1 else ''} are empty; use files of "
        f"{sample_rate_hz:,} Hz or more if there are any"
    )


def note_low_rates(dataset: PreparedDataset) -> None:
    """Say of a data set that it has clips of a lower rate."""
    card = dataset.card
    if note := low_rate_note(card.low_rates, card.num_clips, card.fbank.sample_rate_hz):
        _logger.info("%s: %s", dataset.path, note)
