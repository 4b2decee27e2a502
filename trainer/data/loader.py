"""From positions in an epoch to batches: what is drawn for each clip, and its numbers read.

In: a clip set, the epoch's order and its mixup partners. Steps: the sampler's arithmetic says which
rows this rank takes at each step; threads read them, ahead of the training step, into memory that
is used again, and draw noise for them. Out: raw clips and partners as they are stored (audio:
decoded), and targets, in the order of the steps; `trainer.data.augment` makes the model's input of
them on the device. Nothing here has state that a restart would need.

B rows of this rank, P partners of mixup, T frames, F mels, S samples, C classes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.fbank_settings import FbankSettings
from trainer.data.augment import mix_targets
from trainer.data.augment_draws import (
    AugmentDraws,
    draw_augmentations,
    draw_noise,
    first_frame,
    needs_partner,
)
from trainer.data.clip_reader import ClipReader
from trainer.data.clips import ClipSet
from trainer.data.sampler import (
    FloatArray,
    IntArray,
    batch_positions,
    bucketed_positions,
    epoch_order,
    mixup_partners,
    rank_slice,
    steps_per_epoch,
)
from trainer.data.settings import AugmentSettings, LoaderSettings
from trainer.data.shard_cache import ShardCache
from trainer.data.transfer import pinned


class _Buffer:
    """Memory of one batch after the other."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.memory = torch.empty(shape, dtype=dtype, pin_memory=on_gpu)
        # Blocking: a thread that waits for the device does not keep a core busy.
        self._used = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]

    def first(self, num_rows: int, length: int) -> Tensor:
        """Its beginning as `[num_rows, length, ...]`, contiguous."""
        shape = (num_rows, length, *self.memory.shape[2:])
        return self.memory.flatten()[: math.prod(shape)].view(shape)

    def mark_used(self) -> None:
        """Note that all copies to the device have been asked for."""
        if self._used is not None:
            self._used.record()

    def wait(self) -> None:
        """Until those copies are done."""
        if self._used is not None:
            self._used.synchronize()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """This rank's share of a global batch; `stored` lasts until the next batch is asked for.

    Copies by `to_device` may be under way for longer.
    """

    stored: Tensor
    """The clips, then the partners of those that are mixed, padded with zeros: raw log-mel
    `[B + P, T, F]` float16, or samples `[B + P, S]` int16 of a data set of audio."""
    lengths: Tensor
    """Frames, or samples, of each of them without the padding, `[B + P]` int64."""
    num_frames: int
    """T, or what S samples give."""
    audio_fbank: FbankSettings | None
    """How fbanks are computed of audio; None where they are stored."""
    targets: Tensor
    """`[B, C]` float32, mixed."""
    weights: Tensor
    """`[B]`: 1, or 0 for rows that only fill up the share."""
    num_clips: int
    """Clips in the global batch, over all ranks."""
    rows: IntArray
    """Which clips of the set these are, `[B]`."""
    draws: AugmentDraws | None = None
    """What remains to be applied on the device; None in evaluation."""
    noise: Tensor | None = None
    """As `draw_noise` gives it."""
    memory: _Buffer
    """What `stored` is in."""

    def to_device(self, device: torch.device) -> "Batch":
        """A copy there; the host does not wait for a GPU to have it."""
        copies = {
            name: value.to(device, non_blocking=True)
            for name in ("stored", "lengths", "targets", "weights", "noise")
            if (value := getattr(self, name)) is not None
        }
        self.memory.mark_used()
        return replace(self, **copies)


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


class Loader:
    """Reads batches of one clip set."""

    def __init__(
        self,
        clips: ClipSet,
        settings: LoaderSettings,
        *,
        num_frames: int,
        bucket_frames: Sequence[int] = (),
        device: torch.device | None = None,
    ) -> None:
        """Clips are cut to `num_frames` and padded to the first of `bucket_frames` that holds them.

        `device` is where the caller copies the batches to, which stay in the CPU's memory.
        """
        self.clips = clips
        self.num_frames = num_frames
        self._settings = settings
        self._audio_fbank = clips.audio.fbank if clips.audio else None
        self._device = device or torch.device("cpu")
        self._is_remote = any(map(storage.is_remote, clips.shards[:1]))
        shards = None
        if self._is_remote and settings.cache_gb > 0:
            shards = ShardCache(settings.cache_folder, max_bytes=round(settings.cache_gb * 1e9))
        self._reader = ClipReader(clips, cache_bytes=settings.cache_mb * 1_000_000, shards=shards)
        self._free_buffers: list[_Buffer] = []
        edges = np.array([*bucket_frames, num_frames])
        kept = np.minimum(self._reader.num_frames, num_frames)
        self.padded_frames: IntArray = edges[np.searchsorted(edges, kept)]
        """Frames that each clip is padded to, `[N]`, or further beside longer ones."""

    def training_batches(
        self, plan: EpochPlan, augment: AugmentSettings, *, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of an epoch from `first_step` on.

        Raises:
            UserError: a clip's shard is not there or ends too early.
        """
        return self._ahead(
            lambda step, executor: self._training_batch(plan, augment, step, executor),
            range(first_step, plan.num_steps),
        )

    def evaluation_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """All clips once, as they are, `batch_size` on each rank at a time.

        In batches of one length each, so that no clip is padded further for what stands beside it,
        and as many on each rank, as they compute together where the model is shared out.

        Raises:
            UserError: a clip's shard is not there or ends too early.
        """
        batches = _split_by_length(self.padded_frames, batch_size * world_size)
        return self._ahead(
            lambda number, executor: self._evaluation_batch(
                *rank_slice(batches[number], rank, world_size), executor
            ),
            range(len(batches)),
        )

    def _training_batch(
        self, plan: EpochPlan, augment: AugmentSettings, step: int, executor: Executor | None
    ) -> Batch:
        everyone = plan.positions(step)
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
        mixed = needs_partner(draws)
        # Of all ranks, so that their number changes nothing.
        num_frames = int(self.padded_frames[plan.order[everyone]].max())
        buffer, stored, lengths = self._read(
            np.concatenate([rows, partners[mixed]]),
            np.concatenate([draws.crop, draws.partner_crop[mixed]]),
            executor,
            num_frames=num_frames,
            max_rows=2 * len(rows) if augment.mixup_share else len(rows),
        )
        targets = mix_targets(
            torch.from_numpy(self.clips.targets(rows)),
            torch.from_numpy(self.clips.targets(partners)),
            draws,
        )
        noise = draw_noise(draws, num_frames, self.clips.num_mels)
        return Batch(
            stored=stored,
            lengths=lengths,
            num_frames=num_frames,
            audio_fbank=self._audio_fbank,
            targets=pinned(targets, self._device),
            weights=pinned(torch.from_numpy(weights), self._device),
            num_clips=len(everyone),
            rows=rows,
            draws=draws,
            noise=None if noise is None else pinned(noise, self._device),
            memory=buffer,
        )

    def _evaluation_batch(
        self, rows: IntArray, weights: NDArray[np.float32], executor: Executor | None
    ) -> Batch:
        num_frames = int(self.padded_frames[rows].max())
        buffer, stored, lengths = self._read(
            rows, np.zeros(len(rows)), executor, num_frames=num_frames, max_rows=len(rows)
        )
        return Batch(
            stored=stored,
            lengths=lengths,
            num_frames=num_frames,
            audio_fbank=self._audio_fbank,
            targets=pinned(torch.from_numpy(self.clips.targets(rows)), self._device),
            weights=pinned(torch.from_numpy(weights), self._device),
            num_clips=int(weights.sum()),
            rows=rows,
            memory=buffer,
        )

    def _read(
        self,
        rows: IntArray,
        crops: FloatArray,
        executor: Executor | None,
        *,
        num_frames: int,
        max_rows: int,
    ) -> tuple[_Buffer, Tensor, Tensor]:
        """Clips in a buffer, cut to the stretches that `crops` say, and their lengths.

        Padded to `num_frames`; a partner of mixup that is longer is cut there, past its clip's end.
        """
        buffer = self._take_buffer(max_rows)
        fbank = self._audio_fbank
        stored = buffer.first(len(rows), fbank.samples_for(num_frames) if fbank else num_frames)
        first = first_frame(crops, self._reader.num_frames[rows], self.num_frames)
        lengths = self._reader.read(stored.numpy(), rows, first, executor)
        return buffer, stored, pinned(torch.from_numpy(lengths), self._device)

    def _take_buffer(self, num_rows: int) -> _Buffer:
        with suppress(IndexError):
            buffer = self._free_buffers.pop()
            if len(buffer.memory) >= num_rows:
                buffer.wait()
                return buffer
        if self._audio_fbank is None:
            shape = (num_rows, self.num_frames, self.clips.num_mels)
            return _Buffer(shape, torch.float16, self._device)
        num_samples = self._audio_fbank.samples_for(self.num_frames)
        return _Buffer((num_rows, num_samples), torch.int16, self._device)

    def _ahead(
        self, work: Callable[[int, Executor | None], Batch], items: range
    ) -> Iterator[Batch]:
        """Batches in order, read by threads up to `batches_ahead` before their turn.

        From S3 every batch ahead is under way, the first with the first of the reads in flight.
        """
        settings, readers = self._settings, None
        num_threads = settings.threads
        if self._is_remote:
            num_threads = settings.batches_ahead
            readers = ThreadPoolExecutor(settings.reads_in_flight)
        # Threads begin with the first GPU, whichever one this process works with.
        is_numbered = self._device.type == "cuda" and self._device.index is not None
        choose = partial(torch.cuda.set_device, self._device) if is_numbered else None
        pool = ThreadPoolExecutor(num_threads, initializer=choose)
        waiting: deque[Future[Batch]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item, readers))
                if len(waiting) > settings.batches_ahead:
                    yield from self._lend(waiting.popleft())
            while waiting:
                yield from self._lend(waiting.popleft())
        finally:
            # Also when the caller stops early: do not leave threads reading for nobody.
            for one in (pool, readers):
                if one is not None:
                    one.shutdown(wait=False, cancel_futures=True)

    def _lend(self, filled: Future[Batch]) -> Iterator[Batch]:
        batch = filled.result()
        yield batch
        self._free_buffers.append(batch.memory)


def _split_by_length(lengths: IntArray, batch_size: int) -> list[IntArray]:
    """Rows of each length, in order, in batches of at most `batch_size`."""
    batches: list[IntArray] = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        batches += np.split(rows, range(batch_size, len(rows), batch_size))
    return batches
