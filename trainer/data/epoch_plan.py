"""Which clips a rank visits in an epoch, step by step, and with which partners of mixup.

In: the number of clips, their weights, the seed, the epoch, the rank. Out: the plan, by the
sampler's arithmetic alone. Nothing here has state that a restart would need.

N clips.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.random_streams import IntArray
from trainer.data.sampler import (
    batch_positions,
    bucketed_positions,
    epoch_order,
    mixup_partners,
    steps_per_epoch,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EpochPlan:
    """Which clips an epoch of this rank visits, and how they are changed."""

    order: NDArray[np.int64]
    """Row of the clip set at each position, `[N]`."""
    partners: NDArray[np.int64]
    """Row of the mixup partner at each position, `[N]`."""
    places: NDArray[np.int64]
    """Positions in the order in which they are computed, `[N]`."""
    epoch: int
    seed: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def num_steps(self) -> int:
        """Global batches in the epoch."""
        return steps_per_epoch(len(self.order), self.batch_size)

    def positions(self, step: int) -> NDArray[np.int64]:
        """Those of the global batch at a step of the epoch."""
        return self.places[batch_positions(step, self.batch_size, len(self.order))]


def plan_epoch(
    num_clips: int,
    weights: NDArray[np.float64] | None,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    rank: int,
    world_size: int,
    padded_frames: IntArray | None = None,
    bucket_batches: int = 1,
) -> EpochPlan:
    """The plan of one epoch for one rank, from pure functions of the arguments.

    `padded_frames`: what each clip is padded to, `[N]`, to compute those of the same together, see
    `SamplerSettings.bucket_frames`; None: in the order of the epoch.
    """
    order = epoch_order(seed=seed, epoch=epoch, num_clips=num_clips, weights=weights)
    places = np.arange(num_clips)
    if padded_frames is not None:
        places = bucketed_positions(
            padded_frames[order], seed=seed, epoch=epoch, batch=batch_size, window=bucket_batches
        )
    return EpochPlan(
        order=order,
        partners=mixup_partners(seed=seed, epoch=epoch, num_clips=num_clips),
        places=places,
        epoch=epoch,
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
