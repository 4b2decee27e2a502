"""Orders are reproducible draws of the right kind, and ranks share a batch without a gap."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from pipeline.errors import SettingValueError
from tests.support.errors import refused
from trainer.data.clip_columns import ClipLabels
from trainer.data.random_streams import Stream, random_bits, uniform
from trainer.data.sampler import (
    batch_positions,
    bucketed_order,
    class_balanced_weights,
    epoch_order,
    mixup_partners,
    rank_slice,
    sampling_weights,
    steps_per_epoch,
)
from trainer.data.settings import MAX_SEED, SamplerSettings

SEEDS = st.integers(0, MAX_SEED)
EPOCHS = st.integers(0, 1000)


@given(SEEDS, EPOCHS, st.integers(1, 500))
def test_shuffled_epoch_visits_every_clip_once(seed: int, epoch: int, num_clips: int) -> None:
    order = epoch_order(seed=seed, epoch=epoch, num_clips=num_clips, weights=None)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(num_clips))


@given(SEEDS, EPOCHS, st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_weighted_epoch_draws_only_clips_with_a_weight(
    seed: int, epoch: int, weights: list[float]
) -> None:
    weights_array = np.array([*weights, 1.0, 0.0])
    num_clips = len(weights_array)
    order = epoch_order(seed=seed, epoch=epoch, num_clips=num_clips, weights=weights_array)
    assert order.shape == (num_clips,)
    assert order.dtype == np.int64
    assert (weights_array[order] > 0).all()


def test_weighted_epoch_follows_the_weights() -> None:
    weights = np.tile([1.0, 0.0, 2.5, 7.0, 0.5], 10_000)
    order = epoch_order(seed=3, epoch=1, num_clips=len(weights), weights=weights)
    counts = np.bincount(order % 5, minlength=5)
    assert counts[1] == 0
    kept = [0, 2, 3, 4]
    assert chisquare(counts[kept], len(order) * weights[kept] / 11).pvalue > 0.001


@pytest.mark.parametrize("total", [1.0, np.nextafter(1.0, 2.0), 1.1, 3.1, np.nextafter(4.0, 0.0)])
def test_extreme_draws_select_the_outermost_weighted_clips(
    monkeypatch: pytest.MonkeyPatch, total: float
) -> None:
    extremes = np.array([0.0, 0.0, 1 - 2**-53, 1 - 2**-53, 1 - 2**-53])
    monkeypatch.setattr("trainer.data.sampler.uniform", lambda bits, size: extremes)
    weights = np.array([0.0, 0.5, 0.0, total - 0.5, 0.0])
    order = epoch_order(seed=0, epoch=0, num_clips=5, weights=weights)
    assert order.tolist() == [1, 1, 3, 3, 3]


def test_shuffle_moves_clips_to_every_position() -> None:
    first = [epoch_order(seed=0, epoch=e, num_clips=5, weights=None)[0] for e in range(5000)]
    assert chisquare(np.bincount(first, minlength=5)).pvalue > 0.001


def test_partners_are_uniform_and_with_replacement() -> None:
    partners = mixup_partners(seed=0, epoch=1, num_clips=20_000)
    assert partners.dtype == np.int64
    assert chisquare(np.bincount(partners // 1000, minlength=20)).pvalue > 0.001
    # Of N uniform draws with replacement a share of 1 - 1/e differs.
    assert len(np.unique(partners)) / 20_000 == pytest.approx(1 - np.exp(-1), abs=0.02)


def test_order_and_partners_are_independent() -> None:
    order = epoch_order(seed=5, epoch=2, num_clips=20_000, weights=None)
    partners = mixup_partners(seed=5, epoch=2, num_clips=20_000)
    assert abs(np.corrcoef(order, partners)[0, 1]) < 0.03
    weighted = epoch_order(seed=5, epoch=2, num_clips=20_000, weights=np.ones(20_000))
    assert abs(np.corrcoef(weighted, partners)[0, 1]) < 0.03


@given(SEEDS, EPOCHS)
def test_order_depends_on_seed_and_epoch_alone(seed: int, epoch: int) -> None:
    def order(s: int, e: int) -> list[int]:
        positions: list[int] = epoch_order(seed=s, epoch=e, num_clips=50, weights=None).tolist()
        return positions

    assert order(seed, epoch) == order(seed, epoch)
    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order((seed + 1) % MAX_SEED, epoch)


def test_order_is_the_same_in_every_release() -> None:
    order = epoch_order(seed=7, epoch=1, num_clips=10, weights=None)
    assert order.tolist() == [0, 5, 8, 3, 1, 9, 6, 4, 7, 2]
    weighted = epoch_order(seed=7, epoch=1, num_clips=10, weights=np.arange(10.0))
    assert weighted.tolist() == [3, 7, 9, 7, 9, 5, 8, 9, 5, 8]
    assert mixup_partners(seed=7, epoch=1, num_clips=10).tolist() == [9, 6, 4, 3, 3, 2, 3, 7, 7, 6]


@given(
    SEEDS,
    st.lists(st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=60),
    st.integers(1, 20),
)
def test_order_and_weights_are_the_same_however_many_are_worked_on_at_once(
    seed: int, labels: list[list[int]], at_once: int
) -> None:
    packed = ClipLabels.of([[0], *labels])
    weights = class_balanced_weights(packed, 4)
    in_pieces = class_balanced_weights(packed, 4, at_once=at_once)
    np.testing.assert_array_equal(in_pieces, weights)
    where = {"seed": seed, "epoch": 2, "num_clips": len(packed)}
    # One search for all numbers, in the order in which they are drawn.
    edges = np.cumsum(weights)
    drawn = uniform(random_bits(Stream.ORDER, seed=seed, epoch=2), len(packed)) * edges[-1]
    expected = np.searchsorted(edges, drawn, side="right").tolist()
    assert epoch_order(**where, weights=weights).tolist() == expected
    assert epoch_order(**where, weights=weights, at_once=at_once).tolist() == expected
    keys = uniform(random_bits(Stream.ORDER, seed=seed, epoch=2), len(packed))
    shuffled = epoch_order(**where, weights=None, at_once=at_once)
    assert shuffled.tolist() == np.argsort(keys, kind="stable").tolist()
    partners = mixup_partners(**where)
    np.testing.assert_array_equal(mixup_partners(**where, at_once=at_once), partners)


@given(
    SEEDS,
    EPOCHS,
    st.lists(st.sampled_from([10, 20, 30]), min_size=1, max_size=200),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_clips_of_equal_length_share_batches(
    seed: int, epoch: int, lengths: list[int], batch: int, window: int
) -> None:
    where = {"seed": seed, "epoch": epoch, "batch": batch, "window": window}
    positions = bucketed_order(np.array(lengths), **where)
    for start in range(0, len(lengths), batch * window):
        stretch = positions[start : start + batch * window]
        assert sorted(stretch) == list(range(start, start + len(stretch)))
        batches = [
            {lengths[position] for position in stretch[first : first + batch]}
            for first in range(0, len(stretch), batch)
        ]
        assert sum(len(batch_lengths) > 1 for batch_lengths in batches) <= len(set(lengths)) - 1


def test_batch_lengths_are_spread_over_the_epoch() -> None:
    lengths = np.arange(160_000) // 10 % 4
    where = {"seed": 3, "batch": 10, "window": 4}
    positions = bucketed_order(lengths, epoch=1, **where)
    for nth in range(4):
        counts = np.bincount(lengths[positions[nth * 10 :: 40]], minlength=4)
        assert chisquare(counts).pvalue > 0.001
    assert not np.array_equal(positions, bucketed_order(lengths, epoch=2, **where))


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"bucket_frames": (0, 5)}, "bucket_frames", [0, 5]),
        ({"bucket_frames": (5, 5)}, "bucket_frames", [5, 5]),
        ({"bucket_batches": 0}, "bucket_batches", 0),
    ],
)
def test_bucket_settings_out_of_range_are_refused(
    settings: dict[str, Any], name: str, value: object
) -> None:
    with refused(name, f"got {value}", type=SettingValueError):
        SamplerSettings(**settings)


def test_clip_weight_is_the_sum_over_its_labels() -> None:
    labels = ClipLabels.of([[0], [0, 1], [2, 0], [], [1, 1]])
    weights = class_balanced_weights(labels, num_classes=4)
    rare, common = 1000 / 2.01, 1000 / 3.01
    assert weights == pytest.approx([common, common + rare, common + 1000 / 1.01, 0, rare])
    assert weights.dtype == np.float64


@given(st.lists(st.sets(st.integers(0, 5)), min_size=1, max_size=30))
def test_balanced_weights_equal_a_plain_count(clips: list[set[int]]) -> None:
    counts = [sum(index in labels for labels in clips) for index in range(6)]
    expected = [sum(1000 / (counts[index] + 0.01) for index in labels) for labels in clips]
    weights = class_balanced_weights(ClipLabels.of(map(sorted, clips)), num_classes=6)
    assert weights == pytest.approx(expected)


def test_balanced_epoch_of_single_labels_draws_classes_equally() -> None:
    labels = [[0]] * 9000 + [[1]] * 900 + [[2]] * 100
    weights = sampling_weights(SamplerSettings(mode="balanced"), ClipLabels.of(labels), 3)
    order = epoch_order(seed=1, epoch=1, num_clips=10_000, weights=weights)
    drawn = np.array([labels[clip][0] for clip in order])
    assert chisquare(np.bincount(drawn, minlength=3)).pvalue > 0.001


def test_shuffling_needs_no_weights() -> None:
    assert sampling_weights(SamplerSettings(mode="shuffle"), ClipLabels.of([[0], [1]]), 2) is None


@given(st.integers(1, 300), st.integers(1, 70))
def test_batches_tile_the_epoch(num_clips: int, batch: int) -> None:
    num_steps = steps_per_epoch(num_clips, batch)
    batches = [batch_positions(step, batch, num_clips) for step in range(num_steps)]
    assert [position for positions in batches for position in positions] == list(range(num_clips))
    assert {len(positions) for positions in batches[:-1]} <= {batch}
    assert 1 <= len(batches[-1]) <= batch


@given(st.integers(1, 70), st.integers(1, 16), st.integers(0, 1000))
def test_ranks_split_a_batch_without_gap_or_duplicate(
    num_rows: int, world_size: int, first: int
) -> None:
    positions = range(first, first + num_rows)
    slices = [rank_slice(positions, rank, world_size) for rank in range(world_size)]
    own = [p for rows, weights in slices for p in rows[weights == 1]]
    assert own == list(positions)
    for rows, weights in slices:
        assert len(rows) == len(weights) == -(-num_rows // world_size)
        assert set(rows[weights == 0]) <= {positions[-1]}
        assert set(weights) <= {0.0, 1.0}
        assert (rows.dtype, weights.dtype) == (np.dtype(np.int64), np.dtype(np.float32))


def test_weighted_sum_over_ranks_equals_the_batch_sum() -> None:
    values = np.random.default_rng(0).integers(0, 1000, 11)
    for world_size in (1, 2, 3, 4, 8, 16):
        total = 0.0
        for rank in range(world_size):
            rows, weights = rank_slice(np.arange(11), rank, world_size)
            total += float(values[rows] @ weights)
        assert total == values.sum()


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        (lambda: SamplerSettings(mode="random"), "mode", "'random'"),  # type: ignore[arg-type]
        (lambda: class_balanced_weights(ClipLabels.of([[0, 3]]), 3), "label_indices", "0 to 3"),
        (lambda: class_balanced_weights(ClipLabels.of([[-1]]), 3), "label_indices", "-1 to -1"),
        (lambda: mixup_partners(seed=0, epoch=0, num_clips=0), "num_clips", 0),
        (lambda: steps_per_epoch(0, 4), "num_clips", 0),
        (lambda: steps_per_epoch(4, 0), "batch", 0),
        (lambda: batch_positions(2, 4, 8), "step", 2),
        (lambda: batch_positions(-1, 4, 8), "step", -1),
        (lambda: rank_slice([], 0, 1), "items", "none"),
        (lambda: rank_slice([1], 2, 2), "rank", 2),
        (lambda: rank_slice([1], -1, 2), "rank", -1),
    ],
)
def test_arguments_out_of_range_are_refused(
    call: Callable[[], object], name: str, value: object
) -> None:
    with refused(name, f"got {value}", type=SettingValueError):
        call()


@pytest.mark.parametrize("weights", [[1, 1], [0, 0, 0], [1, -1, 1], [1, np.nan, 1], [1, np.inf, 1]])
def test_invalid_weights_are_refused(weights: list[float]) -> None:
    given = f"{len(weights)}," if len(weights) != 3 else f"{np.min(weights):.1f} to"
    with refused("weights", given, type=SettingValueError):
        epoch_order(seed=0, epoch=0, num_clips=3, weights=np.array(weights, dtype=np.float64))
