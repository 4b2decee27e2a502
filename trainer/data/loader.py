"""Batches of clips, read ahead of the training step.

In: a clip set and the plan of an epoch. Steps: the plan says which clips this rank takes at each
step; threads read them into reused memory and draw noise for them. Out: for each step, in order, a
`Batch` at its first stage, which `trainer.data.augment` turns into the model's input on the device.
Nothing here has state that a restart would need.

B clips of this rank, P mixup partners, T frames, F mels, S samples, C classes.
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

        Batches stay in the CPU's memory; `device` is where the caller will copy them.
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
        """Frames that each clip is padded to, `[N]`; more in a batch with longer clips."""

    def training_batches(
        self, plan: EpochPlan, augment: AugmentSettings, *, first_step: int = 0
    ) -> Iterator[Batch]:
        """Batches of an epoch from `first_step` on.

        Raises:
            UserError: a clip's shard is missing or ends too early.
        """
        return self._ahead(
            lambda step, executor: self._training_batch(plan, augment, step, executor),
            range(first_step, plan.num_steps),
        )

    def evaluation_batches(self, *, rank: int, world_size: int, batch_size: int) -> Iterator[Batch]:
        """All clips once, not augmented, `batch_size` on each rank at a time.

        Each batch has clips of one length, so that none is padded to a longer neighbour. All ranks
        get as many batches, since under FSDP they compute together.

        Raises:
            UserError: a clip's shard is missing or ends too early.
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
        all_positions = plan.positions(step)
        positions, clip_weights = rank_slice(all_positions, plan.rank, plan.world_size)
        draws = draw_augmentations(
            augment,
            seed=plan.seed,
            epoch=plan.epoch,
            positions=positions,
            num_mels=self.clips.num_mels,
            num_frames=self.num_frames,
        )
        indices, partners = plan.order[positions], plan.partners[positions]
        mixed = needs_partner(draws)
        # The longest over all ranks, so that their number changes nothing.
        num_frames = int(self.padded_frames[plan.order[all_positions]].max())
        buffer, x, lengths = self._read(
            np.concatenate([indices, partners[mixed]]),
            np.concatenate([draws.crop, draws.partner_crop[mixed]]),
            executor,
            num_frames=num_frames,
            max_clips=2 * len(indices) if augment.mixup_share else len(indices),
        )
        targets = mix_targets(
            torch.from_numpy(self.clips.targets(indices)),
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
            clip_weights=pinned(torch.from_numpy(clip_weights), self._device),
            num_clips=len(all_positions),
            indices=indices,
            draws=draws,
            noise=None if noise is None else pinned(noise, self._device),
            memory=buffer,
        )

    def _evaluation_batch(
        self, indices: IntArray, clip_weights: NDArray[np.float32], executor: Executor | None
    ) -> Batch:
        num_clips = len(indices)
        num_frames = int(self.padded_frames[indices].max())
        buffer, x, lengths = self._read(
            indices, np.zeros(num_clips), executor, num_frames=num_frames, max_clips=num_clips
        )
        return Batch(
            x=x,
            lengths=lengths,
            num_frames=num_frames,
            audio_fbank=self._audio_fbank,
            targets=pinned(torch.from_numpy(self.clips.targets(indices)), self._device),
            clip_weights=pinned(torch.from_numpy(clip_weights), self._device),
            num_clips=int(clip_weights.sum()),
            indices=indices,
            memory=buffer,
        )

    def _read(
        self,
        indices: IntArray,
        crops: FloatArray,
        executor: Executor | None,
        *,
        num_frames: int,
        max_clips: int,
    ) -> tuple[Buffer, Tensor, Tensor]:
        """Clips in a buffer, cropped, and their lengths.

        Padded to `num_frames`, or cut there: a mixup partner may be longer than its clip.
        """
        buffer = self._take_buffer(max_clips)
        fbank = self._audio_fbank
        x = buffer.first(len(indices), fbank.samples_for(num_frames) if fbank else num_frames)
        first = first_frame(crops, self._reader.num_frames[indices], self.num_frames)
        lengths = self._reader.read(x.numpy(), indices, first, executor)
        return buffer, x, pinned(torch.from_numpy(lengths), self._device)

    def _take_buffer(self, num_clips: int) -> Buffer:
        with suppress(IndexError):
            buffer = self._free_buffers.pop()
            if len(buffer.memory) >= num_clips:
                buffer.wait()
                return buffer
        if self._audio_fbank is None:
            shape = (num_clips, self.num_frames, self.clips.num_mels)
            return Buffer(shape, torch.float16, self._device)
        num_samples = self._audio_fbank.samples_for(self.num_frames)
        return Buffer((num_clips, num_samples), torch.int16, self._device)

    def _ahead(
        self, work: Callable[[int, Executor | None], Batch], items: range
    ) -> Iterator[Batch]:
        """Batches in order, read by threads up to `batches_ahead` before their turn.

        From S3 all batches ahead are read at once; the reads in flight serve the first ones first.
        """
        settings, readers = self._settings, None
        num_threads = settings.threads
        if self._is_remote:
            num_threads = settings.batches_ahead
            readers = ThreadPoolExecutor(settings.reads_in_flight)
        # A new thread's current GPU is the first, whichever this process works with.
        is_numbered = self._device.type == "cuda" and self._device.index is not None
        set_device = partial(torch.cuda.set_device, self._device) if is_numbered else None
        pool = ThreadPoolExecutor(num_threads, initializer=set_device)
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
            for executor in (pool, readers):
                if executor is not None:
                    executor.shutdown(wait=False, cancel_futures=True)

    def _lend(self, future: Future[Batch]) -> Iterator[Batch]:
        """The batch, whose memory is free for another once the caller asks for the next."""
        batch = future.result()
        yield batch
        if batch.memory is not None:
            self._free_buffers.append(batch.memory)


def _split_by_length(lengths: IntArray, batch_size: int) -> list[IntArray]:
    """Indices of the clips of each length, in order, in batches of at most `batch_size`."""
    batches: list[IntArray] = []
    for length in np.unique(lengths):
        indices = np.flatnonzero(lengths == length)
        batches += np.split(indices, range(batch_size, len(indices), batch_size))
    return batches
