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
from trainer.data.random_streams import FloatArray, IntArray, Stream, random_bits, uniform
from trainer.data.settings import SamplerSettings


def class_balanced_weights(label_indices: Sequence[Sequence[int]], num_classes: int) -> FloatArray:
    """Sampling weights `[N]` of clips with the given label indices.

    A class has the weight 1000 / (number of its clips + 0.01), a clip the sum over its labels, as
    in the script that the AST authors released for AudioSet. A clip without labels has the weight
    0 and is never drawn. Raises ValueError for an index outside the classes.
    """
    clips = np.repeat(np.arange(len(label_indices)), [len(labels) for labels in label_indices])
    classes = np.array([index for labels in label_indices for index in labels], dtype=np.int64)
    if classes.size and not (classes.min() >= 0 and classes.max() < num_classes):
        raise SettingValueError(
            "label_indices",
            f"must be from 0 to {num_classes - 1}, got {classes.min()} to {classes.max()}",
        )
    # A label that a clip lists twice counts once, as it does in the clip's targets.
    pairs = np.sort(clips * num_classes + classes)
    pairs = pairs[np.diff(pairs, prepend=-1) != 0]
    clips, classes = np.divmod(pairs, num_classes)
    class_weights = 1000.0 / (np.bincount(classes, minlength=num_classes) + 0.01)
    weights = np.bincount(clips, weights=class_weights[classes], minlength=len(label_indices))
    return weights.astype(np.float64)


def sampling_weights(
    settings: SamplerSettings, label_indices: Sequence[Sequence[int]], num_classes: int
) -> FloatArray | None:
    """The weights `[N]` that `epoch_order` draws by, or None to shuffle."""
    if settings.mode == "shuffle":
        return None
    return class_balanced_weights(label_indices, num_classes)


def epoch_order(*, seed: int, epoch: int, num_clips: int, weights: FloatArray | None) -> IntArray:
    """The clip at each position of an epoch, `[N]`.

    Without sampling weights, a permutation. With weights `[N]`, N independent draws with
    replacement, each clip with a probability proportional to its weight. Raises ValueError for
    weights that are not N finite numbers of at least 0, or that are all 0.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.ORDER, seed=seed, epoch=epoch)
    if weights is None:
        return np.argsort(uniform(bits, num_clips), kind="stable").astype(np.int64)
    _check_weights(weights, num_clips)
    # Each clip owns the interval below its edge, which is empty for a weight of 0. The number drawn
    # stays below the last edge: 1 - 2^-53, the largest that `uniform` returns, times any total
    # rounds to less than the total.
    upper_edges = np.cumsum(weights, dtype=np.float64)
    drawn = uniform(bits, num_clips) * upper_edges[-1]
    order: IntArray = np.searchsorted(upper_edges, drawn, side="right").astype(np.int64)
    return order


def mixup_partners(*, seed: int, epoch: int, num_clips: int) -> IntArray:
    """The clip to mix in at each position of an epoch, `[N]`: uniform, with replacement.

    Uniform even if the order is balanced: the authors found weighted partners to be worse (a
    comment in their data loader). A clip can be its own partner.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.MIXUP_PARTNERS, seed=seed, epoch=epoch)
    return np.floor(uniform(bits, num_clips) * num_clips).astype(np.int64)


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
        order[start : start + window * batch] = [*full.flatten(), *positions[num_full * batch :]]
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
