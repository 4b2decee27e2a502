"""From positions in an epoch to batches: read fbanks by range, mix, pad, stack.

In: a clip set, the epoch's order and its mixup partners. Steps: the sampler's arithmetic says which
rows this rank takes at each step; threads read and assemble batches ahead of the training step.
Out: raw (not normalised) log-mel batches with targets, in the order of the steps. Nothing here
has state that a restart would need.

B rows of this rank, T frames, F mels, C classes.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.errors import UserError
from pipeline.shards import Fbank, fbank_from_bytes
from trainer.augment import (
    AugmentDraws,
    AugmentSettings,
    draw_augmentations,
    mix_log_mel,
    mix_targets,
    needs_partner,
    pad_to,
)
from trainer.clips import ClipSet
from trainer.sampler import (
    batch_positions,
    epoch_order,
    mixup_partners,
    rank_slice,
    steps_per_epoch,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How batches get to the training step; none of it changes what they hold."""

    threads: int = 4
    """Threads that read and assemble batches, in each worker."""
    batches_ahead: int = 8
    """Batches read before they are needed."""
    cache_mb: int = 1024
    """Memory of each worker for fbanks once read, in MB; a small data set is read only once."""

    def __post_init__(self) -> None:
        for name in ("threads", "batches_ahead"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, got {getattr(self, name)}")
        if self.cache_mb < 0:
            raise ValueError(f"cache_mb: must be at least 0, got {self.cache_mb}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """This rank's share of a global batch."""

    x: Tensor
    """Raw log-mel, mixed and padded, `[B, T, F]` float32."""
    targets: Tensor
    """`[B, C]` float32."""
    weights: Tensor
    """`[B]`: 1, or 0 for rows that only fill up the share."""
    num_clips: int
    """Clips in the global batch, over all ranks."""
    draws: AugmentDraws | None = None
    """What remains to be applied on the device; None in evaluation."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EpochPlan:
    """Which clips an epoch of this rank visits, and how they are changed."""

    order: NDArray[np.int64]
    """Row of the clip set at each position, `[N]`."""
    partners: NDArray[np.int64]
    """Row of the mixup partner at each position, `[N]`."""
    epoch: int
    seed: int
    batch_size: int
    rank: int
    world_size: int

    @property
    def num_steps(self) -> int:
        """Global batches in the epoch."""
        return steps_per_epoch(len(self.order), self.batch_size)


def plan_epoch(
    num_clips: int,
    weights: NDArray[np.float64] | None,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    rank: int,
    world_size: int,
) -> EpochPlan:
    """The plan of one epoch for one rank, from pure functions of the arguments."""
    return EpochPlan(
        order=epoch_order(seed=seed, epoch=epoch, num_clips=num_clips, weights=weights),
        partners=mixup_partners(seed=seed, epoch=epoch, num_clips=num_clips),
        epoch=epoch,
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
    )


class Loader:
    """Reads and assembles batches of one clip set."""

    def __init__(self, clips: ClipSet, settings: LoaderSettings, *, num_frames: int) -> None:
        self.clips = clips
        self.num_frames = num_frames
        self._settings = settings
        self._cache: dict[int, Fbank] = {}
        self._cache_left_bytes = settings.cache_mb * 1_000_000

    def training_batches(
        self, plan: EpochPlan, augment: AugmentSettings, *, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of an epoch from `first_step` on."""
        return self._ahead(
            lambda step: self._training_batch(plan, augment, step),
            range(first_step, plan.num_steps),
        )

    def evaluation_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """All clips once, shared out among the ranks in order, as they are."""
        rows, weights = rank_slice(range(len(self.clips)), rank, world_size)
        starts = range(0, len(rows), batch_size)
        return self._ahead(
            lambda start: self._evaluation_batch(
                rows[start : start + batch_size], weights[start : start + batch_size]
            ),
            starts,
        )

    def fbank(self, row: int) -> Tensor:
        """The stored fbank of a clip, float16 `[T', F]`, unpadded; not to be written to.

        Raises:
            UserError: the clip's shard is not there or ends too early.
        """
        cached = self._cache.get(row)
        if cached is None:
            # A writable copy: torch refuses to share memory that it may not write to.
            cached = fbank_from_bytes(self._read(row), self.clips.num_mels).copy()
            if self._cache_left_bytes >= cached.nbytes:
                self._cache_left_bytes -= cached.nbytes
                self._cache[row] = cached
        return torch.from_numpy(cached)

    def _read(self, row: int) -> bytes:
        clips = self.clips
        place = (clips.shards[row], int(clips.offset_bytes[row]), int(clips.size_bytes[row]))
        try:
            data: bytes = storage.with_retries(storage.read_range, *place)
        except (FileNotFoundError, EOFError) as error:
            raise UserError(
                f"{clips.shards[row]}: the shard is missing or too short for clip "
                f"{clips.ids[row]!r}; the data set is damaged, prepare it again"
            ) from error
        return data

    def _training_batch(self, plan: EpochPlan, augment: AugmentSettings, step: int) -> Batch:
        everyone = batch_positions(step, plan.batch_size, len(plan.order))
        positions, weights = rank_slice(everyone, plan.rank, plan.world_size)
        draws = draw_augmentations(
            augment,
            seed=plan.seed,
            epoch=plan.epoch,
            positions=positions,
            num_mels=self.clips.num_mels,
            num_frames=self.num_frames,
        )
        rows, partners = plan.order[positions], plan.partners[positions]
        targets = torch.from_numpy(self.clips.targets(rows))
        x = torch.empty(len(rows), self.num_frames, self.clips.num_mels)
        mixed = needs_partner(draws)
        partner_targets = torch.from_numpy(self.clips.targets(partners))
        for i, row in enumerate(rows):
            clip = self.fbank(int(row))
            if mixed[i]:
                share = float(draws.mixup_lambda[i])
                clip = mix_log_mel(clip, self.fbank(int(partners[i])), share)
                targets[i] = mix_targets(targets[i], partner_targets[i], share)
            x[i] = pad_to(clip, self.num_frames)
        return Batch(
            x=x,
            targets=targets,
            weights=torch.from_numpy(weights),
            num_clips=len(everyone),
            draws=draws,
        )

    def _evaluation_batch(self, rows: NDArray[np.int64], weights: NDArray[np.float32]) -> Batch:
        x = torch.stack([pad_to(self.fbank(int(row)), self.num_frames).float() for row in rows])
        return Batch(
            x=x,
            targets=torch.from_numpy(self.clips.targets(rows)),
            weights=torch.from_numpy(weights),
            num_clips=int(weights.sum()),
        )

    def _ahead(self, work: Callable[[int], Batch], items: range) -> Iterator[Batch]:
        """Results in order, worked out by threads up to `batches_ahead` before their turn."""
        pool = ThreadPoolExecutor(self._settings.threads)
        waiting: deque[Future[Batch]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > self._settings.batches_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Also when the caller stops early: do not leave threads reading for nobody.
            pool.shutdown(wait=False, cancel_futures=True)
