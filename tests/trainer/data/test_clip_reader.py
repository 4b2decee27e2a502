"""Clips are read one at a time into the caller's memory, locally and from a bucket."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.errors import refused
from tests.support.prepared import make_prepared, to_version_2
from trainer.data import clip_reader
from trainer.data.clip_columns import ClipIds, ClipLabels, ClipShards
from trainer.data.clip_reader import ClipReader
from trainer.data.clips import ClipSet, select_clips

NUM_FRAMES = 64
ROWS = [7, 0, 39, 7, 12]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def clips(dataset: PreparedDataset) -> ClipSet:
    return select_clips(dataset, "train")


def memory(num_clips: int, fill: float = 7.0) -> Any:
    return np.full((num_clips, NUM_FRAMES, 128), fill, dtype=np.float16)


def check_reads(dataset: PreparedDataset, reader: ClipReader, executor: Any = None) -> None:
    """The requested frames, then zeros, even in used memory."""
    fbanks = [dataset.read_fbank(row) for row in ROWS]
    first = np.array([0, 3, 1, 8, 0])
    for fill in (7.0, np.nan):
        out = memory(len(ROWS), fill)
        num_frames = reader.read(out, ROWS, first, executor)
        for fbank, start, number, row in zip(fbanks, first, num_frames, out, strict=True):
            assert number == min(len(fbank) - start, NUM_FRAMES)
            assert np.array_equal(row[:number], fbank[start : start + number])
            assert not row[number:].any()


# No memory for clips, for some of them, and for all.
@pytest.mark.parametrize("cache_bytes", [0, 50_000, 10**9])
def test_requested_frames_are_read(
    dataset: PreparedDataset, clips: ClipSet, cache_bytes: int
) -> None:
    lengths = {min(NUM_FRAMES, len(dataset.read_fbank(row))) for row in ROWS}
    assert len(lengths) > 2
    assert NUM_FRAMES in lengths, "one is cut"
    reader = ClipReader(clips, cache_bytes=cache_bytes)
    for _ in range(2):
        check_reads(dataset, reader)
    with ThreadPoolExecutor(4) as executor:
        check_reads(dataset, reader, executor)


def test_requested_frames_are_read_from_a_bucket(s3: str) -> None:
    remote = make_prepared(f"{s3}/data")
    clips = select_clips(remote, "train")
    for cache_bytes in (0, 10**9):
        with ThreadPoolExecutor(4) as executor:
            check_reads(remote, ClipReader(clips, cache_bytes=cache_bytes), executor)


def test_each_shard_is_opened_once(
    dataset: PreparedDataset, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_file = os.open

    def counting(path: Any, *arguments: Any, **options: Any) -> int:
        if path in clips.shards:
            opened.append(path)
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counting)
    check_reads(dataset, ClipReader(clips, cache_bytes=0))
    assert opened == clips.shards[:1]


def test_shards_are_closed_above_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clips: ClipSet
) -> None:
    """The least recently read shards are closed and reopened."""
    monkeypatch.setattr(clip_reader, "MAX_OPEN_SHARDS", 2)
    shards = [str(tmp_path / str(number)) for number in range(6)]
    for number, shard in enumerate(shards):
        Path(shard).write_bytes(np.full(128, number, dtype=np.float16).tobytes())
    many = ClipSet(
        name="many",
        ids=ClipIds.of(shards),
        shards=ClipShards.of(shards),
        offset_bytes=np.zeros(6, dtype=np.int64),
        size_bytes=np.full(6, 256, dtype=np.int64),
        label_indices=ClipLabels.of([[]] * 6),
        common=np.zeros(6, dtype=np.bool_),
        labels=[],
        num_mels=128,
    )
    reader, out, rows = ClipReader(many, cache_bytes=0), memory(12), np.arange(12) % 6
    assert reader.read(out, rows, np.zeros(12, dtype=np.int64)).tolist() == [1] * 12
    assert out[:, 0, 0].tolist() == rows.tolist()
    # Others of the process may close at any moment, also while they are listed.
    is_open = [os.path.realpath(file) in shards for file in Path("/proc/self/fd").iterdir()]
    assert sum(is_open) == 2


def test_short_reads_are_continued(
    dataset: PreparedDataset, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network drives may return less than requested."""
    preadv = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:1000]], offset)
    )
    check_reads(dataset, ClipReader(clips, cache_bytes=0))


def test_stale_file_handle_is_reopened(
    dataset: PreparedDataset, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.faults.RETRY_AFTER_S", (0.0,))
    preadv = os.preadv
    stale: set[int] = set()

    def failing(file: int, buffers: Any, offset: int) -> int:
        if not stale:
            stale.add(file)
            raise OSError(116, "Stale file handle")
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    reader = ClipReader(clips, cache_bytes=0)
    check_reads(dataset, reader)
    assert reader._open.cache_info().misses == 1, "counted again since the cache was emptied"
    assert stale


def test_cache_stays_within_its_size(clips: ClipSet) -> None:
    reader = ClipReader(clips, cache_bytes=100_000)
    reader.read(memory(40), range(40), np.zeros(40, dtype=np.int64))
    assert 50_000 < sum(map(len, reader._cache.values())) <= 100_000


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_damaged_shard_is_named(tmp_path: Path, cache_bytes: int) -> None:
    clips = select_clips(make_prepared(str(tmp_path)), "eval")
    shard, zero = clips.shards[0], np.zeros(1, dtype=np.int64)
    content = storage.read_bytes(shard)
    storage.write_bytes(shard, content[: int(clips.offset_bytes[1])])
    reader = ClipReader(clips, cache_bytes=cache_bytes)
    reader.read(memory(1), [0], zero)
    with refused(shard, "clip 'eval/01'", remedy="prepare"):
        reader.read(memory(1), [1], zero)
    storage.remove(shard)
    with refused(shard, "clip 'eval/01'", remedy="prepare"):
        ClipReader(clips, cache_bytes=cache_bytes).read(memory(1), [1], zero)


def flip(path: str, position: int) -> None:
    content = bytearray(storage.read_bytes(path))
    content[position] ^= 1
    storage.write_bytes(path, bytes(content))


@pytest.mark.parametrize("cache_bytes", [0, 10**9])
def test_flipped_bit_is_named_also_outside_the_frames_that_are_read(
    tmp_path: Path, cache_bytes: int
) -> None:
    clips = select_clips(make_prepared(str(tmp_path)), "eval")
    long = int(np.argmax(clips.num_frames))
    assert clips.num_frames[long] > NUM_FRAMES
    end = int(clips.offset_bytes[long] + clips.size_bytes[long])
    others = np.delete(np.arange(len(clips)), long)
    for position in (end - 1, int(clips.offset_bytes[long])):
        flip(clips.shards[long], position)
        reader = ClipReader(clips, cache_bytes=cache_bytes)
        reader.read(memory(len(others)), others, np.zeros(len(others), dtype=np.int64))
        for first_frame in (0, 3):
            with refused(
                clips.shards[long], f"clip {clips.ids[long]!r}", "checksum", remedy="verify"
            ):
                reader.read(memory(1), [long], np.array([first_frame]))
        flip(clips.shards[long], position)


def test_part_of_a_long_clip_is_read_alone_once_the_clip_was_checked(
    clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = int(np.argmax(clips.num_frames))
    reader, sizes = ClipReader(clips, cache_bytes=0), list[int]()
    preadv = os.preadv

    def counting(file: int, buffers: Any, offset: int) -> int:
        sizes.append(len(buffers[0]))
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    for _ in range(3):
        reader.read(memory(1), [long], np.array([1]))
    assert sizes == [clips.size_bytes[long], NUM_FRAMES * 256, NUM_FRAMES * 256]


def test_old_data_set_without_checksums_is_read(tmp_path: Path) -> None:
    make_prepared(str(tmp_path))
    to_version_2(str(tmp_path))
    old = open_dataset(str(tmp_path))
    clips = select_clips(old, "train")
    assert clips.xxh3 is None
    check_reads(old, ClipReader(clips, cache_bytes=0))


def test_damaged_object_in_a_bucket_is_named(s3: str) -> None:
    clips = select_clips(make_prepared(f"{s3}/data"), "eval")
    shard, zero = clips.shards[0], np.zeros(1, dtype=np.int64)
    storage.write_bytes(shard, storage.read_bytes(shard)[: int(clips.offset_bytes[1]) + 10])
    reader = ClipReader(clips, cache_bytes=0)
    with refused(shard, "clip 'eval/01'", remedy="prepare"):
        reader.read(memory(1), [1], zero)
    storage.remove(shard)
    with refused(shard, "clip 'eval/01'", remedy="prepare"):
        reader.read(memory(1), [1], zero)
