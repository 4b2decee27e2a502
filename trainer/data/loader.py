"""Batches of clips, read ahead of the training step.

In: a clip set and the plan of an epoch. Steps: the plan says which rows this rank takes at each
step; threads read them into memory that is used again, and draw noise for them. Out: a `Batch` at
its first stage for each step, in order; `trainer.data.augment` makes the model's input of it on the
device. Nothing here has state that a restart would need.

B rows of this rank, P partners of mixup, T frames, F mels, S samples, C classes.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from trainer.data.augment import mix_targets
from trainer.data.augment_draws import draw_augmentations, draw_noise, first_frame, needs_partner
from trainer.data.batch import Batch
from trainer.data.clip_reader import ClipReader
from trainer.data.clips import ClipSet
from trainer.data.epoch_plan import EpochPlan
from trainer.data.random_streams import FloatArray, IntArray
from trainer.data.sampler import rank_slice
from trainer.data.settings import AugmentSettings, LoaderSettings
from trainer.data.shard_cache import ShardCache
from trainer.data.transfer import Buffer, pinned


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
        self._free_buffers: list[Buffer] = []
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
        buffer, x, lengths = self._read(
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
            x=x,
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
        buffer, x, lengths = self._read(
            rows, np.zeros(len(rows)), executor, num_frames=num_frames, max_rows=len(rows)
        )
        return Batch(
            x=x,
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
    ) -> tuple[Buffer, Tensor, Tensor]:
        """Clips in a buffer, cut to the stretches that `crops` say, and their lengths.

        Padded to `num_frames`; a partner of mixup that is longer is cut there, past its clip's end.
        """
        buffer = self._take_buffer(max_rows)
        fbank = self._audio_fbank
        x = buffer.first(len(rows), fbank.samples_for(num_frames) if fbank else num_frames)
        first = first_frame(crops, self._reader.num_frames[rows], self.num_frames)
        lengths = self._reader.read(x.numpy(), rows, first, executor)
        return buffer, x, pinned(torch.from_numpy(lengths), self._device)

    def _take_buffer(self, num_rows: int) -> Buffer:
        with suppress(IndexError):
            buffer = self._free_buffers.pop()
            if len(buffer.memory) >= num_rows:
                buffer.wait()
                return buffer
        if self._audio_fbank is None:
            shape = (num_rows, self.num_frames, self.clips.num_mels)
            return Buffer(shape, torch.float16, self._device)
        num_samples = self._audio_fbank.samples_for(self.num_frames)
        return Buffer((num_rows, num_samples), torch.int16, self._device)

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
        if batch.memory is not None:
            self._free_buffers.append(batch.memory)


def _split_by_length(lengths: IntArray, batch_size: int) -> list[IntArray]:
    """Rows of each length, in order, in batches of at most `batch_size`."""
    batches: list[IntArray] = []
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        batches += np.split(rows, range(batch_size, len(rows), batch_size))
    return batches
