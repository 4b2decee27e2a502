"""Reads any clips of a data set straight from their shards into a batch.

In: indices of clips, and the first frame of each. Steps: the data set's index says where a clip's
fbank or FLAC file lies, so each is one positioned read, from an open file or from S3, where many
are in flight; the bytes are compared with the clip's checksum in the index; the thread that reads
audio also decodes all of it. Out: an array, which the caller reuses.

Of a long clip only a part is read, which has no checksum: the first time, the whole clip is read.

B clips, T frames, F mels, S samples.
"""

import os
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import lru_cache
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.audio.stored_audio import Samples16, decode_flac
from pipeline.dataset.prepared import REPAIR
from pipeline.errors import UserError
from pipeline.shards.tar import Fbank, checksum
from trainer.data.clips import NUM_BYTES, ClipSet
from trainer.data.shard_cache import ShardCache

IntArray = NDArray[np.int64]

MAX_OPEN_SHARDS = 512
"""Files kept open, below the 1,024 that a process may commonly have."""


class ClipReader:
    """Reads clips of one clip set; may be used by several threads."""

    def __init__(
        self, clips: ClipSet, *, cache_bytes: int, shards: ShardCache | None = None
    ) -> None:
        """`cache_bytes` of memory keep clips that were read, so that they are read once."""
        self.num_frames: IntArray = clips.num_frames
        """Frames of each clip, `[N]`."""
        if clips.audio is None:
            self._lengths, self._step = self.num_frames, 1
        else:
            self._lengths, self._step = clips.audio.num_samples, clips.audio.fbank.frame_shift
        self._clips = clips
        self._cache: dict[int, bytearray] = {}
        self._cache_left_bytes = cache_bytes
        self._cache_lock = Lock()
        self._is_checked = np.full(len(clips), clips.xxh3 is None)
        self._shard_cache = shards
        self._open = lru_cache(MAX_OPEN_SHARDS)(_OpenFile)

    def read(
        self,
        out: Fbank | Samples16,
        indices: Sequence[int] | IntArray,
        first_frames: IntArray,
        executor: Executor | None = None,
    ) -> IntArray:
        """Fill `out` with clips, each from its given frame on, cut to fit.

        Shorter clips are padded with zeros. In the raw log-mel zeros are not silence, but they are
        what the published models were trained with.

        Args:
            out: contiguous; `[B, T, F]` float16, or `[B, S]` int16 where audio is stored.
            indices: of B clips of the set.
            first_frames: first frame to read of each clip, `[B]`.
            executor: reads clips in parallel; without it they are read here, in order.

        Returns:
            The number of frames, or samples, read from each clip, `[B]`.

        Raises:
            UserError: a clip's shard is missing or ends too early, or the clip is damaged.
        """
        firsts = first_frames * self._step
        lengths: IntArray = np.minimum(self._lengths[indices] - firsts, out.shape[1])
        targets = [item[:length] for item, length in zip(out, lengths, strict=True)]
        run = map if executor is None else executor.map
        read = self._read_fbank if self._clips.audio is None else self._read_audio
        for _ in run(read, map(int, indices), firsts.tolist(), targets):
            pass
        for item, length in zip(out, lengths, strict=True):
            item[length:] = 0
        return lengths

    def _read_fbank(self, index: int, first_frame: int, out: Fbank) -> None:
        into = out.data.cast("B")
        skip_bytes = first_frame * NUM_BYTES * self._clips.num_mels
        clip = self._cached(index)
        size_bytes = int(self._clips.size_bytes[index])
        if clip is None and len(into) == size_bytes:
            self._read_clip(index, into)
        elif clip is None and self._is_checked[index]:
            self._read_range(index, skip_bytes, into)
        else:
            if clip is None:
                clip = bytearray(size_bytes)
                self._read_clip(index, memoryview(clip))
            into[:] = memoryview(clip)[skip_bytes : skip_bytes + len(into)]

    def _read_audio(self, index: int, first_sample: int, out: Samples16) -> None:
        clip = self._cached(index)
        if clip is None:
            clip = bytearray(int(self._clips.size_bytes[index]))
            self._read_clip(index, memoryview(clip))
        try:
            samples = decode_flac(bytes(clip), int(self._lengths[index]))
        except EOFError as error:
            raise UserError(
                f"{self._clips.shards[index]}",
                f"the audio of clip {self._clips.ids[index]!r} {error}",
                REPAIR,
            ) from error
        out[:] = samples[first_sample : first_sample + len(out)]

    def _cached(self, index: int) -> bytearray | None:
        """The whole clip from the cache, read now if needed; None if it does not fit."""
        if index not in self._cache:
            size_bytes = int(self._clips.size_bytes[index])
            with self._cache_lock:
                if size_bytes > self._cache_left_bytes:
                    return None
                self._cache_left_bytes -= size_bytes
            clip = bytearray(size_bytes)
            self._read_clip(index, memoryview(clip))
            with self._cache_lock:
                if index in self._cache:  # another thread read it meanwhile
                    self._cache_left_bytes += size_bytes
                self._cache[index] = clip
        return self._cache[index]

    def _read_clip(self, index: int, into: memoryview) -> None:
        """Read a whole clip and compare it with its checksum."""
        self._read_range(index, 0, into)
        if not self._matches(index, into):
            # A copy in the cache, or the transfer, may be to blame.
            if self._shard_cache:
                self._shard_cache.drop(self._clips.shards[index])
            self._read_range(index, 0, into)
            if not self._matches(index, into):
                raise UserError(
                    self._clips.shards[index],
                    f"clip {self._clips.ids[index]!r} does not match its checksum in the index",
                    REPAIR,
                )
        self._is_checked[index] = True

    def _matches(self, index: int, clip: memoryview) -> bool:
        checksums = self._clips.xxh3
        return checksums is None or checksum(clip) == int(checksums[index])

    def _read_range(self, index: int, skip_bytes: int, into: memoryview) -> None:
        shard = self._clips.shards[index]
        path = self._shard_cache.path(shard) if self._shard_cache else shard
        read = self._read_remote if storage.is_remote(path) else self._read_local
        try:
            offset_bytes = int(self._clips.offset_bytes[index]) + skip_bytes
            with storage.explained(path):
                storage.with_retries(read, path, offset_bytes, into)
        except storage.NoFileError as error:
            raise UserError(shard, error.what, REPAIR) from error
        except (FileNotFoundError, EOFError) as error:
            raise UserError(
                shard,
                f"the shard is missing or too short for clip {self._clips.ids[index]!r}",
                REPAIR,
            ) from error

    def _read_remote(self, path: str, offset_bytes: int, into: memoryview) -> None:
        into[:] = storage.read_range(path, offset_bytes, len(into))

    def _read_local(self, path: str, offset_bytes: int, into: memoryview) -> None:
        try:
            self._open(path).read(offset_bytes, into)
        except OSError:
            # Files on a network drive can go stale: a retry opens them again.
            self._open.cache_clear()
            raise


class _OpenFile:
    """A file that closes once neither the cache nor a reading thread refers to it."""

    def __init__(self, path: str) -> None:
        self._file = -1
        storage.regular_size(path)  # raises for a pipe, whose opening would wait for a writer
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)

    def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill `into`. Raises EOFError if the file ends too early."""
        num_read = 0
        while num_read < len(into):
            count = os.preadv(self._file, [into[num_read:]], offset_bytes + num_read)
            if count == 0:
                raise EOFError(f"{num_read} bytes from {offset_bytes}, expected {len(into)}")
            num_read += count
