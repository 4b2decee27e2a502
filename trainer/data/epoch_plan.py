"""Which clips a rank visits in an epoch, step by step, and with which mixup partners.

In: the number of clips, their sampling weights, the seed, the epoch, the rank. Out: the plan, a
pure function of these. Nothing here has state that a restart would need.

N clips.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.data.random_streams import IntArray
from trainer.data.sampler import (
    batch_positions,
    bucketed_order,
    epoch_order,
    mixup_partners,
    steps_per_epoch,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EpochPlan:
    """The clips of an epoch, their mixup partners, and what selects this rank's slices of them."""

    order: NDArray[np.int64]
    """Index of the clip at each position, `[N]`."""
    partners: NDArray[np.int64]
    """Index of the mixup partner at each position, `[N]`."""
    position_order: NDArray[np.int64] | None
    """Positions in the order in which they are computed, `[N]`; None: in their own order."""
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
        """Positions of the global batch at a step of the epoch."""
        places = np.asarray(batch_positions(step, self.batch_size, len(self.order)))
        return places if self.position_order is None else self.position_order[places]


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
    """The plan of one epoch for one rank, a pure function of the arguments.

    `padded_frames`: frames that each clip is padded to, `[N]`, to batch clips of one length
    together (see `SamplerSettings.bucket_frames`); None: in the order of the epoch.
    """
    order = epoch_order(seed=seed, epoch=epoch, num_clips=num_clips, weights=weights)
    position_order = None
    if padded_frames is not None:
        position_order = bucketed_order(
            padded_frames[order], seed=seed, epoch=epoch, batch=batch_size, window=bucket_batches
        )
    return EpochPlan(
        order=order,
        partners=mixup_partners(seed=seed, epoch=epoch, num_clips=num_clips),
        position_order=position_order,
        epoch=epoch,
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )
