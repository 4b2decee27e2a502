"""The tars: plain WebDataset, the same bytes every time, every fbank where the index says."""

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.shards.plan import shard_sizes
from pipeline.shards.tar import (
    ByteRange,
    Fbank,
    ShardWriter,
    fbank_from_bytes,
    member_header,
    shard_key,
)

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
AWKWARD_IDS = [
    "1-100032-A-0",
    "dog/puppy/a b.wav",
    "../../etc/passwd",
    "/absolute",
    ".",
    "..",
    "a.b.c",
    "100%",
    "%2E",
    "__meta__",
    "犬の声" * 40,
    "ümlaut\n\ttab",
    "x" * 300,
]


def random_fbank(num_frames: int, seed: int = 0) -> Fbank:
    rng = np.random.default_rng(seed)
    return rng.normal(-6, 5, (num_frames, 128)).astype(np.float16)


def write_shard(ids: list[str]) -> tuple[bytes, list[Fbank], list[ByteRange]]:
    """A tar with a clip for each id, the fbanks and their locations."""
    fbanks = [random_fbank(1 + 13 * number, seed=number) for number in range(len(ids))]
    file = io.BytesIO()
    writer = ShardWriter(file)
    locations = [
        writer.add(clip_id, {"labels": ["dög", "rain"], "fold": number, "duration_s": 0.1}, numbers)
        for number, (clip_id, numbers) in enumerate(zip(ids, fbanks, strict=True))
    ]
    assert writer.num_clips == len(ids)
    writer.finish()
    data = file.getvalue()
    assert (writer.size_bytes, writer.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    return data, fbanks, locations


@given(num_clips=st.integers(1, 100_000), clips_per_shard=st.integers(1, 5_000))
def test_shard_sizes_are_even_and_limited(num_clips: int, clips_per_shard: int) -> None:
    sizes = shard_sizes(num_clips, clips_per_shard)
    assert sum(sizes) == num_clips
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1
    assert max(sizes) <= clips_per_shard
    # No more shards than the limit asks for, or than 16 of at least 25 clips.
    needed = -(-num_clips // clips_per_shard)
    assert len(sizes) == max(needed, min(16, num_clips // 25), 1)


@given(first=IDS, second=IDS)
def test_keys_are_unique_and_hold_no_separator(first: str, second: str) -> None:
    for clip_id in (first, second):
        key = shard_key(clip_id)
        assert key.isascii()
        assert key.isprintable()
        assert not set(key) & set("./\\ ")
    assert (shard_key(first) == shard_key(second)) == (first == second)


def test_awkward_ids_get_distinct_keys() -> None:
    assert len({shard_key(clip_id) for clip_id in AWKWARD_IDS}) == len(AWKWARD_IDS)


@settings(max_examples=30)
@given(ids=st.lists(IDS, min_size=1, max_size=5, unique=True))
def test_tarfile_reads_members_at_the_recorded_offsets(ids: list[str]) -> None:
    data, fbanks, locations = write_shard(ids)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        names = [f"{shard_key(clip_id)}.{suffix}" for clip_id in ids for suffix in ("json", "npy")]
        assert [member.name for member in members] == names
        for member, numbers, location in zip(members[1::2], fbanks, locations, strict=True):
            file = tar.extractfile(member)
            assert file is not None
            loaded = np.load(io.BytesIO(file.read()), allow_pickle=False)
            np.testing.assert_array_equal(loaded, numbers)
            stored = data[location.offset_bytes : location.offset_bytes + location.size_bytes]
            np.testing.assert_array_equal(fbank_from_bytes(stored, 128), numbers)
            assert member.offset_data < location.offset_bytes
            assert location.offset_bytes + location.size_bytes == member.offset_data + member.size


def test_tar_bytes_are_reproducible() -> None:
    data, _, _ = write_shard(AWKWARD_IDS)
    assert write_shard(AWKWARD_IDS)[0] == data
    assert len(data) % tarfile.RECORDSIZE == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        headers = {
            (member.mtime, member.mode, member.uid, member.gid, member.uname, member.gname)
            for member in tar
        }
    assert headers == {(0, 0o644, 0, 0, "", "")}


@settings(max_examples=50, deadline=None)
@given(ids=st.lists(st.one_of(IDS, st.sampled_from(AWKWARD_IDS)), min_size=1, unique=True))
def test_tar_bytes_equal_those_of_tarfile(ids: list[str]) -> None:
    data, _, _ = write_shard(ids)
    file = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as ours,
        tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for member in ours:
            info = tarfile.TarInfo(member.name)
            info.size, info.mode = member.size, 0o644
            tar.addfile(info, ours.extractfile(member))
    assert data == file.getvalue()


@pytest.mark.parametrize("size", [0, 1, 511, 8**11 - 1, 8**11])
@pytest.mark.parametrize("length", [1, 99, 100, 101])
def test_headers_of_members_equal_those_of_tarfile(length: int, size: int) -> None:
    info = tarfile.TarInfo("x" * length)
    info.size, info.mode = size, 0o644
    assert member_header(info.name, size) == info.tobuf(tarfile.PAX_FORMAT)


def test_gnu_tar_lists_and_extracts_a_shard(tmp_path: Path) -> None:
    ids = ["dog/a.wav", "ü", "100%"]
    path = tmp_path / "shard.tar"
    data, fbanks, _ = write_shard(ids)
    path.write_bytes(data)
    done = subprocess.run(["tar", "tf", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        f"{shard_key(clip_id)}.{suffix}" for clip_id in ids for suffix in ("json", "npy")
    ]
    subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    extracted = np.load(tmp_path / "dog%2Fa%2Ewav.npy", allow_pickle=False)
    np.testing.assert_array_equal(extracted, fbanks[0])


# webdataset leaves the closing of the tars it opened to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedReader name='.*tar'>")
def test_webdataset_decodes_shards(tmp_path: Path) -> None:
    halves = [AWKWARD_IDS[:6], AWKWARD_IDS[6:]]
    expected: dict[str, Fbank] = {}
    for number, ids in enumerate(halves):
        data, fbanks, _ = write_shard(ids)
        (tmp_path / f"train-{number:05d}.tar").write_bytes(data)
        expected.update(zip(ids, fbanks, strict=True))
    pattern = f"{tmp_path}/train-{{00000..00001}}.tar"
    samples: list[dict[str, Any]] = list(
        webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False).decode()
    )
    assert [sample["json"]["id"] for sample in samples] == AWKWARD_IDS
    for sample in samples:
        clip_id = sample["json"]["id"]
        assert sample["__key__"] == shard_key(clip_id)
        assert sample["json"]["labels"] == ["dög", "rain"]
        assert sample["npy"].dtype == np.float16
        np.testing.assert_array_equal(sample["npy"], expected[clip_id])


def test_offsets_stay_right_in_a_long_shard() -> None:
    file = io.BytesIO()
    writer = ShardWriter(file)
    locations = [writer.add(str(number), {}, random_fbank(998)) for number in range(20)]
    data = file.getvalue()
    assert {location.size_bytes for location in locations} == {998 * 128 * 2}
    for location in locations:
        stored = data[location.offset_bytes : location.offset_bytes + location.size_bytes]
        np.testing.assert_array_equal(fbank_from_bytes(stored, 128), random_fbank(998))
