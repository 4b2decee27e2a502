"""Which clips an epoch visits, in which order, and which rank takes which of them.

In: the seed, the epoch (and for balanced sampling the clips' labels). Steps: draw the epoch's
order of clips, put positions of clips of like length together if asked to, cut them into global
batches, cut each batch into equal slices, one per rank. Out: positions in the epoch. All are pure
functions of their arguments: the order knows nothing of the number of ranks or workers, and a
restart needs only the seed, the epoch and the step.

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

    A class weighs 1000 / (number of its clips + 0.01), a clip the sum over its labels, as in the
    script that the AST authors released for AudioSet. A clip without labels weighs 0 and is never
    drawn. Raises ValueError for an index outside the classes.
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


def draw_weights(
    settings: SamplerSettings, label_indices: Sequence[Sequence[int]], num_classes: int
) -> FloatArray | None:
    """What `epoch_order` takes as weights under these settings: `[N]`, or None to shuffle."""
    if settings.mode == "shuffle":
        return None
    return class_balanced_weights(label_indices, num_classes)


def epoch_order(*, seed: int, epoch: int, num_clips: int, weights: FloatArray | None) -> IntArray:
    """The clip at each position of an epoch, `[N]`.

    Without weights a permutation. With weights `[N]`, N independent draws with replacement, each
    clip with a probability in proportion to its weight. Raises ValueError for weights that are
    not N finite numbers of at least 0, or that are all 0.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.ORDER, seed=seed, epoch=epoch)
    if weights is None:
        return np.argsort(uniform(bits, num_clips), kind="stable").astype(np.int64)
    _check_weights(weights, num_clips)
    # Each clip owns the stretch below its edge, which is empty without a weight. The number drawn
    # stays below the last edge: 1 - 2^-53, the largest that `uniform` gives, times any total
    # rounds to less than the total.
    upper_edges = np.cumsum(weights, dtype=np.float64)
    drawn = uniform(bits, num_clips) * upper_edges[-1]
    order: IntArray = np.searchsorted(upper_edges, drawn, side="right").astype(np.int64)
    return order


def mixup_partners(*, seed: int, epoch: int, num_clips: int) -> IntArray:
    """The clip to mix in at each position of an epoch, `[N]`: uniform, with replacement.

    Uniform also when the order is balanced: the authors found that weighted partners are worse
    (a comment in their data loader). A clip can be its own partner.
    """
    _check_num_clips(num_clips)
    bits = random_bits(Stream.MIXUP_PARTNERS, seed=seed, epoch=epoch)
    return np.floor(uniform(bits, num_clips) * num_clips).astype(np.int64)


def bucketed_positions(
    lengths: IntArray, *, seed: int, epoch: int, batch: int, window: int
) -> IntArray:
    """Positions of an epoch in the order in which they are computed, `[N]`.

    A permutation within stretches of `window` global batches. In each the positions are sorted by
    length, those of the same in the order they had, and the batches cut from them are shuffled, so
    at most one less than there are lengths are mixed. A smaller last batch stays the last one.

    Args:
        lengths: frames that the clip at each position is padded to, `[N]`.
        batch: clips in a global batch.
        window: batches.
    """
    places = np.arange(len(lengths))
    for start in range(0, len(lengths), window * batch):
        stretch = places[start : start + window * batch]
        stretch = stretch[np.argsort(lengths[stretch], kind="stable")]
        num_full = len(stretch) // batch
        bits = random_bits(Stream.BUCKETS, seed=seed, epoch=epoch, position=start)
        shuffled = np.argsort(uniform(bits, num_full), kind="stable")
        full = stretch[: num_full * batch].reshape(num_full, batch)[shuffled]
        places[start : start + window * batch] = [*full.flatten(), *stretch[num_full * batch :]]
    return places


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
    positions: Sequence[int] | IntArray, rank: int, world_size: int
) -> tuple[IntArray, NDArray[np.float32]]:
    """The rows of one rank, and their weights: 1 for a row that is its own, 0 for filler.

    Every rank gets ceil(rows / world_size) rows, so that all ranks make the same collective
    calls even where there are fewer rows than ranks. The ranks' own rows, in the order of the
    ranks, are exactly `positions`: a sum of row times weight over all ranks counts each once.
    Filler repeats the last position. Raises ValueError without a row or for a rank outside the
    world.
    """
    if len(positions) == 0:
        raise SettingValueError("positions", "must be at least one, got none")
    if not 0 <= rank < world_size:
        raise SettingValueError("rank", f"must be from 0 to {world_size - 1}, got {rank}")
    num_rows = -(-len(positions) // world_size)
    rows = np.arange(rank * num_rows, (rank + 1) * num_rows)
    is_own = rows < len(positions)
    every_position = np.asarray(positions, dtype=np.int64)
    return every_position[np.minimum(rows, len(positions) - 1)], is_own.astype(np.float32)


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
