"""Which clips an epoch visits, in which order, and which rank takes which of them.

In: the seed, the epoch (and for balanced sampling the clips' labels). Steps: draw the epoch's
order of clips, optionally group positions of clips of equal length, cut them into global batches,
cut each batch into equal slices, one per rank. Out: positions in the epoch. All are pure functions
of their arguments: the order does not depend on the number of ranks, and a restart needs only the
seed, the epoch and the step.

N clips, C classes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingValueError
from trainer.data.clip_columns import ClipLabels
from trainer.data.random_streams import FloatArray, IntArray, Stream, random_bits, uniform
from trainer.data.settings import SamplerSettings

_AT_ONCE = 1 << 20
"""Clips or positions that are worked on together: some 8 MB for each number of theirs."""


def class_balanced_weights(
    label_indices: ClipLabels, num_classes: int, *, at_once: int = _AT_ONCE
) -> FloatArray:
    """Sampling weights `[N]` of clips with the given label indices, for `at_once` clips a time.

    A class has the weight 1000 / (number of its clips + 0.01), a clip the sum over its labels, as
    in the script that the AST authors released for AudioSet. A clip without labels has the weight
    0 and is never drawn. Raises ValueError for an index outside the classes.
    """
    known = label_indices.classes
    if known.size and not (known.min() >= 0 and known.max() < num_classes):
        raise SettingValueError(
            "label_indices",
            f"must be from 0 to {num_classes - 1}, got {known.min()} to {known.max()}",
        )
    num_clips = len(label_indices)
    starts = range(0, num_clips, at_once)
    counts = np.zeros(num_classes, dtype=np.int64)
    for start in starts:
        _, classes = label_indices.distinct_pairs(start, start + at_once)
        counts += np.bincount(classes, minlength=num_classes)
    class_weights = 1000.0 / (counts + 0.01)
    weights = np.empty(num_clips, dtype=np.float64)
    for start in starts:
        out = weights[start : start + at_once]
        clips, classes = label_indices.distinct_pairs(start, start + at_once)
        out[:] = np.bincount(clips - start, weights=class_weights[classes], minlength=len(out))
    return weights


def sampling_weights(
    settings: SamplerSettings, label_indices: ClipLabels, num_classes: int
) -> FloatArray | None:
    """The weights `[N]` that `epoch_order` draws by, or None to shuffle."""
    if settings.mode == "shuffle":
        return None
    return class_balanced_weights(label_indices, num_classes)


def epoch_order(
    *,
    seed: int,
    epoch: int,
    num_clips: int,
    weights: FloatArray | None,
    at_once: int = _AT_ONCE,
) -> IntArray:
    """The clip at each position of an epoch, `[N]`; drawn for `at_once` positions a time.

    Without sampling weights, a permutation. With weights `[N]`, N independent draws with
    replacement, each clip with a probability proportional to its weight. Raises ValueError for
    weights that are not N finite numbers of at least 0, or that are all 0.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.ORDER, seed=seed, epoch=epoch)
    if weights is None:
        keys = np.empty(num_clips, dtype=np.float64)
        for start in range(0, num_clips, at_once):
            drawn_keys = keys[start : start + at_once]
            drawn_keys[:] = uniform(bits, len(drawn_keys))
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    _check_weights(weights, num_clips)
    # Each clip owns the interval below its edge, which is empty for a weight of 0. The number drawn
    # stays below the last edge: 1 - 2^-53, the largest that `uniform` returns, times any total
    # rounds to less than the total.
    upper_edges = np.cumsum(weights, dtype=np.float64)
    order = np.empty(num_clips, dtype=np.int64)
    for start in range(0, num_clips, at_once):
        out = order[start : start + at_once]
        drawn = uniform(bits, len(out)) * upper_edges[-1]
        # In ascending order, neighbouring searches read neighbouring edges: 15 times faster.
        ascending = np.argsort(drawn)
        out[ascending] = np.searchsorted(upper_edges, drawn[ascending], side="right")
    return order


def mixup_partners(*, seed: int, epoch: int, num_clips: int, at_once: int = _AT_ONCE) -> IntArray:
    """The clip to mix in at each position of an epoch, `[N]`: uniform, with replacement.

    Uniform even if the order is balanced: the authors found weighted partners to be worse (a
    comment in their data loader). A clip can be its own partner.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.MIXUP_PARTNERS, seed=seed, epoch=epoch)
    partners = np.empty(num_clips, dtype=np.int64)
    for start in range(0, num_clips, at_once):
        out = partners[start : start + at_once]
        out[:] = np.floor(uniform(bits, len(out)) * num_clips)
    return partners


def bucketed_order(
    lengths: IntArray, *, seed: int, epoch: int, batch: int, window: int
) -> IntArray:
    """Positions of an epoch in the order in which they are computed, `[N]`.

    Positions are permuted within windows of `window` global batches: stably sorted by length, and
    cut into batches, which are shuffled. With L lengths, at most L - 1 batches in a window mix
    lengths. A smaller last batch stays last.

    Args:
        lengths: frames that the clip at each position is padded to, `[N]`.
        batch: clips in a global batch.
        window: batches.
    """
    order = np.arange(len(lengths))
    for start in range(0, len(lengths), window * batch):
        positions = order[start : start + window * batch]
        positions = positions[np.argsort(lengths[positions], kind="stable")]
        num_full = len(positions) // batch
        bits = random_bits(Stream.BUCKETS, seed=seed, epoch=epoch, position=start)
        shuffled = np.argsort(uniform(bits, num_full), kind="stable")
        full = positions[: num_full * batch].reshape(num_full, batch)[shuffled]
        rest = positions[num_full * batch :]
        order[start : start + window * batch] = np.concatenate([full.flatten(), rest])
    return order


def steps_per_epoch(num_clips: int, batch: int) -> int:
    """Global batches of `batch` clips in an epoch; the last one may be smaller."""
    _check_num_clips(num_clips)
    _check_batch(batch)
    return -(-num_clips // batch)


def batch_positions(step: int, batch: int, num_clips: int) -> range:
    """Positions in the epoch of the global batch at `step`, counted from 0 within the epoch."""
    num_steps = steps_per_epoch(num_clips, batch)
    if not 0 <= step < num_steps:
        raise SettingValueError("step", f"must be from 0 to {num_steps - 1}, got {step}")
    return range(step * batch, min((step + 1) * batch, num_clips))


def rank_slice(
    items: Sequence[int] | IntArray, rank: int, world_size: int
) -> tuple[IntArray, NDArray[np.float32]]:
    """One rank's slice of a batch's items, and their weights: 1, or 0 for filler.

    Every rank gets ceil(items / world_size), so that all ranks make the same collective calls
    even if there are fewer items than ranks. Without filler, the slices in the order of the ranks
    are exactly `items`: a sum of item times weight over all ranks counts each once. Filler repeats
    the last item. Raises ValueError without items or for a rank outside the world.
    """
    if len(items) == 0:
        raise SettingValueError("items", "must be at least one, got none")
    if not 0 <= rank < world_size:
        raise SettingValueError("rank", f"must be from 0 to {world_size - 1}, got {rank}")
    slice_size = -(-len(items) // world_size)
    offsets = np.arange(rank * slice_size, (rank + 1) * slice_size)
    is_item = offsets < len(items)
    all_items = np.asarray(items, dtype=np.int64)
    return all_items[np.minimum(offsets, len(items) - 1)], is_item.astype(np.float32)


def _check_num_clips(num_clips: int) -> None:
    if num_clips < 1:
        raise SettingValueError("num_clips", f"must be at least 1, got {num_clips}")


def _check_batch(batch: int) -> None:
    if batch < 1:
        raise SettingValueError("batch", f"must be at least 1, got {batch}")


def _check_weights(weights: FloatArray, num_clips: int) -> None:
    if weights.shape != (num_clips,):
        raise SettingValueError("weights", f"must have shape ({num_clips},), got {weights.shape}")
    if not (np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise SettingValueError(
            "weights",
            f"must be finite, at least 0 and not all 0, got {weights.min()} to {weights.max()}",
        )
