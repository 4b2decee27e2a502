"""When all ranks leave a run at the same step, since one of them has a notice to do so.

In: for each step, how many ranks are to leave, a figure on the device that each step's sum over the
ranks brings along. Steps: read it some steps later, when the device is done with it, so that the
host never waits. Out: the same answer on every rank.
"""

from collections import deque

import torch
from torch import Tensor

from trainer.training.window import MAX_STEPS_BEHIND


class Notice:
    """The votes of the newest steps."""

    def __init__(self) -> None:
        self._votes: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def add(self, votes: Tensor) -> None:
        """Add a step's number of ranks that are to leave, on its device."""
        if votes.device.type != "cuda":
            self._votes.append((votes, None))
            return
        # Pinned, as PyTorch copies to the CPU when it does not block.
        copy = votes.to("cpu", non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._votes.append((copy, event))

    def is_due(self, *, at_end: bool) -> bool:
        """Whether to leave now: on a GPU by the votes of some steps ago, unless `at_end`.

        `at_end`, which waits for the device, takes the votes of all steps into account.
        """
        num_behind = 0 if at_end else MAX_STEPS_BEHIND
        is_due = False
        while self._votes and (len(self._votes) > num_behind or self._votes[0][1] is None):
            votes, event = self._votes.popleft()
            if event is not None:
                event.synchronize()
            is_due |= bool(votes)
        return is_due
