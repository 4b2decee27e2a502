"""Waiting for batches, and for a GPU that is too far behind."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainer.training.window import MAX_STEPS_BEHIND, timed


@pytest.mark.parametrize(("device", "num_waits"), [("cpu", 0), ("cuda", 10 - MAX_STEPS_BEHIND)])
def test_gpu_is_only_a_few_steps_behind(
    monkeypatch: pytest.MonkeyPatch, device: str, num_waits: int
) -> None:
    """A batch is requested only once the GPU is at most a few steps behind."""
    asked, done = itertools.count(), [0]

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            assert blocking

        def record(self) -> None:
            self.step = next(asked)

        def synchronize(self) -> None:
            assert self.step == done[0], "in their order"
            done[0] += 1

    def batches() -> Iterator[Any]:
        for number in range(10):
            if device == "cuda":
                assert number - done[0] <= MAX_STEPS_BEHIND
            yield number

    monkeypatch.setattr(torch.cuda, "Event", Event)
    received: list[object] = [batch for batch, _ in timed(batches(), torch.device(device))]
    assert received == list(range(10))
    assert done == [num_waits]
