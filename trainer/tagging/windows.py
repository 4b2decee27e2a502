"""Windows of a recording: which stretches are scored, and their samples, from a stream of blocks.

Windows of one length follow each other at a fixed distance, the hop, from the start of the
recording on; one more ends with the recording where the last of them does not. A recording that is
no longer than a window, or than the model's whole input where that is the window, is one window.

Lengths and places count samples at the rate of the fbank.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPlan:
    """Lengths in samples."""

    length: int
    hop: int
    longest_single: int
    """The longest recording that is one window, at least `length`."""

    def __post_init__(self) -> None:
        assert self.hop >= 1
        assert 1 <= self.length <= self.longest_single

    def starts(self, num_samples: int) -> list[int]:
        """Where the windows of a recording start; none of an empty one."""
        if num_samples <= self.longest_single:
            return [0] * (num_samples > 0)
        last = num_samples - self.length
        starts = list(range(0, last + 1, self.hop))
        return starts if starts[-1] == last else [*starts, last]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Window:
    """A stretch of a recording."""

    start: int
    samples: Samples
    """`[N]`."""

    @property
    def end(self) -> int:
        """The sample after its last."""
        return self.start + len(self.samples)


def cut_windows(blocks: Iterable[Samples], plan: WindowPlan) -> Iterator[Window]:
    """The windows of a recording, in order, each as soon as its samples are there.

    Args:
        blocks: the recording, in pieces of any length.
        plan: their lengths.
    """
    kept = np.empty(0, np.float32)
    first, num_samples, next_start = 0, 0, 0
    """Place of `kept` in the recording, samples so far, and start of the next window."""
    ended_at = 0
    for block in blocks:
        num_samples += len(block)
        kept = np.concatenate([kept, block])
        if num_samples <= plan.longest_single:
            continue
        while next_start + plan.length <= num_samples:
            window = kept[next_start - first :][: plan.length]
            yield Window(start=next_start, samples=window)
            ended_at = next_start + plan.length
            next_start += plan.hop
        # The last window may begin as early as this.
        needed = min(next_start, num_samples - plan.length) - first
        if needed > 0:
            kept, first = kept[needed:].copy(), first + needed
    if 0 < num_samples <= plan.longest_single:
        yield Window(start=0, samples=kept)
    elif num_samples > ended_at:
        last = num_samples - plan.length
        yield Window(start=last, samples=kept[last - first :])
