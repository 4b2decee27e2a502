"""Copies of shards on this machine's disk: the same clips, within the bound, made once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.errors import PassingError
from tests.support.errors import refused
from tests.support.prepared import make_prepared
from trainer.data import shard_cache
from trainer.data.clip_reader import ClipReader
from trainer.data.clips import select_clips
from trainer.data.shard_cache import ShardCache

SHARDS = ("a", "b", "c")


@pytest.fixture
def shards(s3: str) -> list[str]:
    """Three objects of 1,000 bytes."""
    paths = [f"{s3}/shards/{name}.tar" for name in SHARDS]
    for path in paths:
        storage.write_bytes(path, path[-5:-4].encode() * 1000)
    return paths


def settled(cache: ShardCache, shards: list[str]) -> dict[str, str]:
    """Where the shards are read from once no copy is being made."""
    for _ in range(2 * len(shards)):
        for shard in shards:
            cache.path(shard)
        if cache._copying is not None:
            cache._copying.exception()
    return {shard: cache.path(shard) for shard in shards}


def copies(folder: Path) -> list[Path]:
    return sorted(folder.glob("ast-ray-shards/*.tar"))


@pytest.mark.parametrize(("max_bytes", "num_copies"), [(999, 0), (2999, 2), (3000, 3)])
def test_copies_stay_within_the_limit(
    shards: list[str],
    tmp_path: Path,
    max_bytes: int,
    num_copies: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_cache, "_PART_BYTES", 300)
    cache = ShardCache(str(tmp_path), max_bytes=max_bytes)
    assert cache.path(shards[0]) == shards[0], "nobody waits for a copy"
    paths = settled(cache, shards)
    assert len(copies(tmp_path)) == num_copies
    assert sum(shard != path for shard, path in paths.items()) == num_copies
    for shard, path in paths.items():
        assert storage.read_bytes(path) == storage.read_bytes(shard)


def test_other_processes_reuse_the_copies(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = settled(ShardCache(str(tmp_path), max_bytes=3000), shards)
    monkeypatch.delattr(storage, "read_range")
    assert settled(ShardCache(str(tmp_path), max_bytes=3000), shards) == first


def test_changed_shard_is_copied_again(shards: list[str], tmp_path: Path) -> None:
    settled(ShardCache(str(tmp_path), max_bytes=9000), shards)
    storage.write_bytes(shards[0], b"x" * 1000)
    paths = settled(ShardCache(str(tmp_path), max_bytes=9000), shards)
    assert Path(paths[shards[0]]).read_bytes() == b"x" * 1000
    assert len(copies(tmp_path)) == 4


def test_leftovers_of_a_killed_process_are_removed(shards: list[str], tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), max_bytes=3000)
    unfinished = tmp_path / "ast-ray-shards" / f".{'0' * 64}.tar.123.0123abcd"
    unfinished.write_bytes(bytes(2500))
    settled(cache, shards)
    assert len(copies(tmp_path)) == 3
    assert not unfinished.exists()


def test_other_files_in_the_folder_are_kept(shards: list[str], tmp_path: Path) -> None:
    """The folder may be a home folder, for example."""
    others = [tmp_path / ".bashrc", tmp_path / "sub" / ".gitconfig", tmp_path / "ast-ray-shards/.a"]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(2500))
    settled(ShardCache(str(tmp_path), max_bytes=3000), shards)
    assert len(copies(tmp_path)) == 3
    assert all(path.exists() for path in others)


def test_truncated_shard_is_not_copied(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = storage.read_range
    monkeypatch.setattr(
        storage, "read_range", lambda path, start, size: read(path, start, size + 1)
    )
    paths = settled(ShardCache(str(tmp_path), max_bytes=9000), shards)
    assert paths == {shard: shard for shard in shards}
    assert copies(tmp_path) == []


def test_unwritable_folder_is_named(shards: list[str], tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path / "cache"), max_bytes=3000)
    (tmp_path / "cache" / "ast-ray-shards").rmdir()
    (tmp_path / "cache" / "ast-ray-shards").write_text("a file")
    with refused(tmp_path / "cache" / "ast-ray-shards", "File exists"):
        settled(cache, shards)


def test_silent_storage_is_named(
    shards: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_range(path: str, offset_bytes: int, size_bytes: int) -> bytes:
        text = "error sending request"
        raise storage.ObjectStoreError(
            path, status=0, code="", text=text, endpoint="http://s3", is_anonymous=False
        )

    cache = ShardCache(str(tmp_path), max_bytes=3000)
    monkeypatch.setenv("AST_RAY_RETRY_S", "1")
    monkeypatch.setattr(storage, "read_range", read_range)
    with refused(shards[0], "no answer", type=PassingError, remedy="AWS_ENDPOINT_URL"):
        settled(cache, shards)


def test_clips_are_the_same_before_and_after_the_copy(s3: str, tmp_path: Path) -> None:
    dataset = make_prepared(f"{s3}/data")
    clips = select_clips(dataset, "train")
    cache = ShardCache(str(tmp_path), max_bytes=10**9)
    reader = ClipReader(clips, cache_bytes=0, shards=cache)
    rows, first = np.arange(40), np.zeros(40, dtype=np.int64)
    read = []
    for _ in range(3):
        with ThreadPoolExecutor(4) as executor:
            out = np.empty((40, 64, 128), dtype=np.float16)
            reader.read(out, rows, first, executor)
        read.append(out)
        settled(cache, clips.shards[:1])
    assert not storage.is_remote(cache.path(clips.shards[0]))
    assert np.array_equal(read[0][0, :40], dataset.read_fbank(0)[:40])
    assert np.array_equal(read[1], read[0])
    storage.remove(clips.shards[0])
    reader.read(read[2], rows, first)
    assert np.array_equal(read[2], read[0])


def test_damaged_copy_is_deleted_and_the_shard_read_instead(
    s3: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = make_prepared(f"{s3}/data")
    clips = select_clips(dataset, "eval")
    cache = ShardCache(str(tmp_path), max_bytes=10**9)
    copy = settled(cache, clips.shards[:1])[clips.shards[0]]
    Path(copy).write_bytes(bytes(Path(copy).stat().st_size))
    reader = ClipReader(clips, cache_bytes=0, shards=cache)
    out = np.full((1, 64, 128), 7, dtype=np.float16)
    for index in (1, 2):
        (num_frames,) = reader.read(out, [index], np.zeros(1, dtype=np.int64))
        fbank = dataset.read_fbank(dataset.index["id"].index(clips.ids[index]).as_py())
        assert np.array_equal(out[0, :num_frames], fbank[:num_frames])
    assert copies(tmp_path) == []
    assert [record.message for record in caplog.records] == [
        f"{copy}: deleted, as it differs from {clips.shards[0]}"
    ]
