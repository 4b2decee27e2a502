"""The steps between two points of the training curve, read from the device all at once.

In: a tensor for each step, with its loss, gradient norm and whether it was skipped, which the host
does not wait for; after a restart between two points, also the steps before it. Steps: read them
together at the next point. Out: the steps, good and bad.
"""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.checkpoints.progress import OpenWindow, StepResult
from trainer.data.batch import Batch

MAX_STEPS_BEHIND = 2
"""Steps queued on a GPU while the host waits for the next batch: it never runs out of work."""


@dataclass(kw_only=True, slots=True)
class Window:
    """Steps since the last point of the curve."""

    waited_s: float = 0.0
    """Seconds that this rank waited for batches."""
    flops: int = 0
    """FLOPs of the model for all clips of the global batches."""
    start_s: float = field(default_factory=time.monotonic)
    _before: list[StepResult] = field(default_factory=list)
    """Steps that were made before a restart."""
    _results: list[Tensor] = field(default_factory=list)
    _num_clips: list[int] = field(default_factory=list)

    @classmethod
    def resumed(cls, saved: OpenWindow) -> "Window":
        """The window that `saved` copied."""
        return cls(
            waited_s=saved.waited_s,
            flops=saved.flops,
            start_s=time.monotonic() - saved.elapsed_s,
            _before=saved.steps,
        )

    def copy(self) -> OpenWindow:
        """A copy for a checkpoint; waits for the device."""
        return OpenWindow(
            steps=self.read(),
            elapsed_s=time.monotonic() - self.start_s,
            waited_s=self.waited_s,
            flops=self.flops,
        )

    def add(self, result: Tensor, num_clips: int, flops_per_clip: int) -> None:
        """Add a step: what `make_step` returns, `[4]` on the device."""
        self._results.append(result)
        self._num_clips.append(num_clips)
        self.flops += num_clips * flops_per_clip

    def __len__(self) -> int:
        return len(self._before) + len(self._results)

    def read(self) -> list[StepResult]:
        """The steps in order; waits for the device."""
        rows = torch.stack(self._results).tolist() if self._results else []
        return self._before + [
            StepResult(loss_sum=loss, num_clips=clips, gradient_norm=norm, is_bad=bad > 0)
            for (loss, norm, bad, _), clips in zip(rows, self._num_clips, strict=True)
        ]


def timed(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, float]]:
    """Each batch with the seconds that the loop waited for it.

    First lets a GPU, which works asynchronously, catch up to `MAX_STEPS_BEHIND` steps: otherwise
    the time would include waiting for buffers that it still reads.
    """
    behind: deque[torch.cuda.Event] = deque()
    while True:
        if len(behind) > MAX_STEPS_BEHIND:
            behind.popleft().synchronize()
        start_s = time.monotonic()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.monotonic() - start_s
        if device.type == "cuda":
            behind.append(torch.cuda.Event(blocking=True))  # type: ignore[no-untyped-call]
            behind[-1].record()
