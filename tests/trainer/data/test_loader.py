"""The loader against a plain loop over clips, for any number of ranks, threads and restarts."""

import math
import os
import threading
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import SettingValueError
from tests.support.errors import refused
from tests.support.plain_clips import cut, mixed, padded
from tests.support.prepared import TINY, make_prepared
from trainer.data.augment import mix_log_mel
from trainer.data.augment_draws import draw_augmentations, needs_partner
from trainer.data.batch import Batch
from trainer.data.clips import ClipSet, select_clips, select_training_data
from trainer.data.epoch_plan import EpochPlan, plan_epoch
from trainer.data.loader import Loader
from trainer.data.settings import AugmentSettings, DataSettings, LoaderSettings

NUM_FRAMES = 64
AUGMENT = AugmentSettings(**TINY["augment"])
EPOCH = 2
SEED = 5
BATCH_SIZE = 7


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), max_labels=2)


@pytest.fixture
def clips(dataset: PreparedDataset) -> ClipSet:
    return select_clips(dataset, "train")


def make_loader(clips: ClipSet, **settings: Any) -> Loader:
    return Loader(clips, LoaderSettings(**settings), num_frames=NUM_FRAMES)


def make_plan(clips: ClipSet, *, rank: int = 0, world_size: int = 1, **others: Any) -> EpochPlan:
    return plan_epoch(
        len(clips),
        others.get("weights"),
        seed=SEED,
        epoch=EPOCH,
        batch_size=BATCH_SIZE,
        rank=rank,
        world_size=world_size,
        padded_frames=others.get("padded_frames"),
        bucket_batches=others.get("bucket_batches", 1),
    )


def ready(batches: Iterable[Batch]) -> list[Batch]:
    """Mixed, `[B, T, F]` float32, and so no longer in the loader's memory."""
    result = []
    for batch in batches:
        x = batch.x.float()
        if batch.draws is not None:
            x = mix_log_mel(batch.x, batch.lengths, batch.draws)
        result.append(replace(batch, x=x))
    return result


def training_batches(
    clips: ClipSet, first_step: int = 0, augment: AugmentSettings = AUGMENT, **settings: int
) -> list[Batch]:
    loader = make_loader(clips, **settings)
    return ready(loader.training_batches(make_plan(clips), augment, first_step=first_step))


def evaluation_batches(
    loader: Loader, *, rank: int = 0, world_size: int = 1, batch_size: int = 40
) -> list[Batch]:
    return ready(loader.evaluation_batches(rank=rank, world_size=world_size, batch_size=batch_size))


def assert_same(batches: Sequence[Batch], others: Sequence[Batch]) -> None:
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert torch.equal(batch.x, other.x)
        assert torch.equal(batch.targets, other.targets)
        assert torch.equal(batch.clip_weights, other.clip_weights)
        assert batch.num_clips == other.num_clips


@pytest.mark.parametrize("crop", ["first", "random"])
def test_batches_equal_a_plain_loop(dataset: PreparedDataset, clips: ClipSet, crop: Any) -> None:
    """Reads clips one at a time through the data set's index."""
    rows = dataset.index.read().to_pylist()
    labels = {row["id"]: [dataset.labels.index(label) for label in row["labels"]] for row in rows}
    fbanks = {
        row["id"]: torch.from_numpy(dataset.read_fbank(position).copy())
        for position, row in enumerate(rows)
    }
    plan, augment = make_plan(clips), replace(AUGMENT, crop=crop)
    assert sorted(plan.order) == list(range(40))
    position, num_mixed, num_moved = 0, 0, 0
    for batch in training_batches(clips, augment=augment):
        assert batch.num_clips == len(batch.x) == min(BATCH_SIZE, 40 - position)
        assert batch.clip_weights.tolist() == [1.0] * len(batch.x)
        for i in range(len(batch.x)):
            own, partner = clips.ids[plan.order[position]], clips.ids[plan.partners[position]]
            draws = draw_augmentations(
                augment,
                seed=SEED,
                epoch=EPOCH,
                positions=[position],
                num_mels=128,
                num_frames=NUM_FRAMES,
            )
            x = cut(fbanks[own].float(), draws.crop[0], NUM_FRAMES)
            num_moved += not torch.equal(x, fbanks[own][:NUM_FRAMES].float())
            targets = torch.zeros(3).index_fill_(0, torch.tensor(labels[own]), 1.0)
            if needs_partner(draws)[0]:
                share = float(draws.mixup_lambda[0])
                x = mixed(x, cut(fbanks[partner], draws.partner_crop[0], NUM_FRAMES), share)
                others = torch.zeros(3).index_fill_(0, torch.tensor(labels[partner]), 1.0)
                targets = share * targets + (1 - share) * others
                num_mixed += 1
            torch.testing.assert_close(batch.x[i], padded(x, NUM_FRAMES), atol=1e-5, rtol=0)
            torch.testing.assert_close(batch.targets[i], targets)
            assert batch.draws is not None
            assert batch.draws.time_start[i] == draws.time_start[0]
            position += 1
    assert position == 40
    assert 8 < num_mixed < 32
    assert (num_moved > 8) == (crop == "random")


def test_partners_are_read_only_for_mixed_clips(clips: ClipSet) -> None:
    for batch in make_loader(clips).training_batches(make_plan(clips), AUGMENT):
        assert batch.draws is not None
        num_read = len(batch.targets) + int(needs_partner(batch.draws).sum())
        assert len(batch.x) == len(batch.lengths) == num_read
        assert batch.x.dtype == torch.float16


def test_weights_decide_the_order(clips: ClipSet) -> None:
    weights = np.zeros(len(clips))
    weights[3] = 1.0
    assert make_plan(clips, weights=weights).order.tolist() == [3] * 40


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_split_the_same_global_batches(clips: ClipSet, world_size: int) -> None:
    """Includes the last batch of 5 clips, where some ranks get none."""
    ranks = [
        ready(
            make_loader(clips).training_batches(
                make_plan(clips, rank=rank, world_size=world_size), AUGMENT
            )
        )
        for rank in range(world_size)
    ]
    for whole, *shares in zip(training_batches(clips), *ranks, strict=True):
        assert {len(share.x) for share in shares} == {-(-whole.num_clips // world_size)}
        own = [share.clip_weights > 0 for share in shares]
        for name in ("x", "targets"):
            parts = [getattr(share, name)[kept] for share, kept in zip(shares, own, strict=True)]
            assert torch.equal(torch.cat(parts), getattr(whole, name))
        assert all(share.num_clips == whole.num_clips for share in shares)
        assert sum(float(share.clip_weights.sum()) for share in shares) == whole.num_clips


BUCKETS = (56, 62)


def bucketed_batches(
    clips: ClipSet, *, rank: int = 0, world_size: int = 1, first_step: int = 0
) -> list[Batch]:
    loader = Loader(clips, LoaderSettings(), num_frames=NUM_FRAMES, bucket_frames=BUCKETS)
    others = {"padded_frames": loader.padded_frames, "bucket_batches": 4}
    plan = make_plan(clips, rank=rank, world_size=world_size, **others)
    return ready(loader.training_batches(plan, AUGMENT, first_step=first_step))


def test_buckets_change_only_order_and_padding(clips: ClipSet) -> None:
    """Clips are mixed alike; only their order and padding differ."""
    frames = clips.size_bytes // 256
    plain = training_batches(clips)
    rows = torch.cat([batch.x for batch in plain])
    targets = torch.cat([batch.targets for batch in plain])
    starts = np.concatenate([batch.draws.time_start for batch in plain if batch.draws is not None])
    loader = Loader(clips, LoaderSettings(), num_frames=NUM_FRAMES, bucket_frames=BUCKETS)
    assert set(loader.padded_frames) == {56, 62, 64}
    plan = make_plan(clips, padded_frames=loader.padded_frames, bucket_batches=4)
    bucketed = bucketed_batches(clips)
    assert [batch.num_clips for batch in bucketed] == [batch.num_clips for batch in plain]
    for step, batch in enumerate(bucketed):
        positions = plan.positions(step)
        longest = int(loader.padded_frames[plan.order[positions]].max())
        assert longest >= min(NUM_FRAMES, frames[plan.order[positions]].max())
        assert batch.x.shape[1] == longest
        assert torch.equal(batch.x, rows[positions, :longest])
        assert not rows[positions, longest:].any()
        assert torch.equal(batch.targets, targets[positions])
        assert batch.draws is not None
        assert np.array_equal(batch.draws.time_start, starts[positions])
    assert len({batch.x.shape[1] for batch in bucketed}) > 1


def test_ranks_and_restarts_change_nothing_in_buckets(clips: ClipSet) -> None:
    whole = bucketed_batches(clips)
    assert_same(bucketed_batches(clips, first_step=3), whole[3:])
    ranks = [bucketed_batches(clips, rank=rank, world_size=3) for rank in range(3)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        parts = [share.x[share.clip_weights > 0] for share in shares]
        assert torch.equal(torch.cat(parts), batch.x)


@pytest.mark.parametrize("first_step", [1, 3, 5, 6])
def test_epoch_resumes_at_any_step(clips: ClipSet, first_step: int) -> None:
    assert_same(training_batches(clips, first_step), training_batches(clips)[first_step:])


@pytest.mark.parametrize(
    "settings",
    [
        {"threads": 1, "batches_ahead": 1, "cache_mb": 0},
        {"threads": 8, "batches_ahead": 20, "cache_mb": 0},
        {"threads": 3, "batches_ahead": 2, "cache_mb": 1},
    ],
)
def test_loader_settings_do_not_change_the_batches(
    clips: ClipSet, settings: dict[str, Any]
) -> None:
    assert_same(training_batches(clips, **settings), training_batches(clips))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where reads of shards begin, in bytes."""
    offsets: list[int] = []
    preadv = os.preadv

    def counting(file: int, buffers: Any, offset: int) -> int:
        offsets.append(offset)
        return preadv(file, buffers, offset)

    monkeypatch.setattr(os, "preadv", counting)
    return offsets


@pytest.mark.parametrize(("cache_mb", "num_reads"), [(1024, 40), (0, 80)])
def test_cache_saves_reads_and_is_never_written_to(
    clips: ClipSet, reads: list[int], cache_mb: int, num_reads: int
) -> None:
    loader = make_loader(clips, threads=1, cache_mb=cache_mb)
    settings = replace(AUGMENT, mixup_share=0.0)
    for _ in range(2):
        for batch in loader.training_batches(make_plan(clips), settings):
            batch.x.fill_(7.0)
    assert len(reads) == num_reads
    assert_same(evaluation_batches(loader), evaluation_batches(make_loader(clips)))


def test_batch_memory_is_reused(clips: ClipSet) -> None:
    loader = make_loader(clips, threads=1, batches_ahead=1, cache_mb=0)
    addresses = []
    for _ in range(3):
        for batch in loader.training_batches(make_plan(clips), AUGMENT):
            addresses.append(batch.x.data_ptr())
    assert len(addresses) == 18
    assert len(set(addresses)) <= 3


@pytest.mark.parametrize("bucket_frames", [(), (48, 56)])
@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 7), (3, 4), (7, 20)])
def test_evaluation_covers_each_clip_once(
    dataset: PreparedDataset, world_size: int, batch_size: int, bucket_frames: tuple[int, ...]
) -> None:
    clips = select_clips(dataset, "eval")
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    counts = set()
    for rank in range(world_size):
        loader = Loader(clips, LoaderSettings(), num_frames=NUM_FRAMES, bucket_frames=bucket_frames)
        batches = evaluation_batches(
            loader, rank=rank, world_size=world_size, batch_size=batch_size
        )
        counts.add(len(batches))
        for batch in batches:
            assert len(batch.x) <= batch_size
            assert batch.num_clips == int(batch.clip_weights.sum())
            for index in np.flatnonzero(batch.clip_weights):
                row = int(batch.indices[index])
                assert row not in seen
                seen[row] = batch.x[index], batch.targets[index]
    assert len(counts) == 1, "ranks with unequal numbers of batches would wait for each other"
    assert len(seen) == len(clips) == 20
    for row, (x, target) in seen.items():
        # The index has the 40 clips to train on first.
        fbank = torch.from_numpy(dataset.read_fbank(40 + row).copy())
        length = next(
            size for size in (*bucket_frames, NUM_FRAMES) if size >= min(len(fbank), len(x))
        )
        assert torch.equal(x, padded(fbank, length))
        assert np.flatnonzero(target).tolist() == sorted(clips.label_indices[row])


def test_batches_from_a_bucket_equal_local_ones(s3: str, clips: ClipSet) -> None:
    remote = select_clips(make_prepared(f"{s3}/data", max_labels=2), "train")
    assert remote.shards[0].startswith("s3://")
    assert_same(training_batches(remote), training_batches(clips))


def test_reads_from_a_bucket_overlap(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of several batches overlap even with one thread."""
    clips = select_clips(make_prepared(f"{s3}/data"), "train")
    num_wanted = 2 * BATCH_SIZE
    lock, enough, under_way = threading.Lock(), threading.Event(), 0
    read_range = storage.read_range

    def waiting(*location: Any) -> bytes:
        nonlocal under_way
        with lock:
            under_way += 1
            if under_way == num_wanted:
                enough.set()
        assert enough.wait(timeout=60), "no read ends before that many have begun"
        return read_range(*location)

    monkeypatch.setattr(storage, "read_range", waiting)
    settings = LoaderSettings(threads=1, batches_ahead=2, reads_in_flight=num_wanted, cache_mb=0)
    loader = Loader(clips, settings, num_frames=NUM_FRAMES)
    augment = replace(AUGMENT, mixup_share=0.0)
    assert len(ready(loader.training_batches(make_plan(clips), augment))) == 6


def test_batches_from_cached_shards_equal_local_ones(
    s3: str, clips: ClipSet, tmp_path: Path
) -> None:
    remote = select_clips(make_prepared(f"{s3}/data", max_labels=2), "train")
    settings = LoaderSettings(cache_mb=0, cache_gb=1.0, cache_folder=str(tmp_path / "cache"))
    loader = Loader(remote, settings, num_frames=NUM_FRAMES)
    for _ in range(3):
        assert_same(
            ready(loader.training_batches(make_plan(remote), AUGMENT)), training_batches(clips)
        )
        # Wait for the copy.
        cache = loader._reader._shard_cache
        assert cache is not None
        if cache._copying is not None:
            cache._copying.result()
    assert len(list((tmp_path / "cache" / "ast-ray-shards").glob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"threads": 0}, "threads", 0),
        ({"reads_in_flight": 0}, "reads_in_flight", 0),
        ({"cache_mb": -1}, "cache_mb", -1),
        ({"cache_gb": math.nan}, "cache_gb", math.nan),
        ({"cache_gb": 1.0}, "cache_folder", ""),
        (
            {"cache_gb": 1.0, "cache_folder": "s3://bucket/cache"},
            "cache_folder",
            "s3://bucket/cache",
        ),
        ({"cache_folder": "cache"}, "cache_folder", "cache"),
    ],
)
def test_loader_settings_out_of_range_are_refused(
    settings: dict[str, Any], name: str, value: object
) -> None:
    with refused(name, f"got {value!r}", type=SettingValueError):
        LoaderSettings(**settings)


def test_damaged_shard_is_named(tmp_path: Any) -> None:
    clips = select_clips(make_prepared(str(tmp_path)), "eval")
    storage.remove(clips.shards[0])
    with refused(clips.shards[0], "clip 'eval/00'", remedy="prepare"):
        evaluation_batches(make_loader(clips), batch_size=4)


def test_stopping_early_ends_all_reads(
    clips: ClipSet, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch is read, one has begun, and three wait for their turn."""
    go_on, preadv, before = threading.Event(), os.preadv, set(threading.enumerate())

    def waiting(*location: Any) -> int:
        if len(reads) >= BATCH_SIZE:
            assert go_on.wait(timeout=60)
        return preadv(*location)

    monkeypatch.setattr(os, "preadv", waiting)
    loader = make_loader(clips, threads=1, batches_ahead=4, cache_mb=0)
    batches = loader.training_batches(make_plan(clips), replace(AUGMENT, mixup_share=0.0))
    next(batches)
    assert isinstance(batches, Generator)
    batches.close()
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=60)
    assert BATCH_SIZE <= len(reads) <= 2 * BATCH_SIZE


def test_fold_is_held_out_for_evaluation(dataset: PreparedDataset) -> None:
    data = select_training_data(dataset, DataSettings(fold=2))
    assert data.evaluation.name == "train-fold2"
    assert not set(data.train.ids) & set(data.evaluation.ids)
    assert len(data.train) == len(data.evaluation) == 20
    # The index has the 40 clips of the split first, in folds 1 and 2 by turns.
    exact = np.concatenate([dataset.read_fbank(row).ravel() for row in range(0, 40, 2)])
    assert data.mean == pytest.approx(exact.astype(np.float64).mean(), rel=1e-9)
    assert data.std == pytest.approx(exact.astype(np.float64).std(), rel=1e-9)
    given = select_training_data(dataset, DataSettings(mean=-4.0, std=3.0))
    assert (given.mean, given.std, given.evaluation.name) == (-4.0, 3.0, "eval")


def test_unused_folds_are_neither_trained_nor_evaluated_on(dataset: PreparedDataset) -> None:
    data = select_training_data(dataset, DataSettings(unused_folds=(1,)))
    used = set(dataset.select("train", fold=2)["id"].to_pylist())
    assert set(data.train.ids) == used
    assert data.evaluation.name == "eval"
    with refused(dataset.path, "1 and 2"):
        select_training_data(dataset, DataSettings(fold=1, unused_folds=(2,)))
    with refused(dataset.path, "no fold 3", remedy="data.unused_folds"):
        select_training_data(dataset, DataSettings(unused_folds=(3,)))
    for settings in ({"unused_folds": (0,)}, {"fold": 1, "unused_folds": (1,)}):
        with refused("unused_folds", type=SettingValueError):
            DataSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (DataSettings(train_split="trian"), ["no split 'trian'", "eval, train"]),
        (DataSettings(eval_split="test"), ["no split 'test'", "eval, train"]),
        (DataSettings(fold=3), ["'train'", "no fold 3"]),
    ],
)
def test_missing_splits_and_folds_are_refused(
    dataset: PreparedDataset, settings: DataSettings, values: list[str]
) -> None:
    keys = ("data.train_split", "data.eval_split", "data.fold")
    with refused(dataset.path, *values, *keys, remedy=True):
        select_training_data(dataset, settings)
