"""Random numbers as pure functions of a seed, a purpose, an epoch and a position.

They come from Philox, a counter-based generator: the seed and the purpose are its key, the epoch
and the position its counter, so any number can be drawn without those before it. NumPy guarantees
the bits of Philox for all its versions, but not the methods of `Generator`: whatever has to stay
the same is computed from the bits.
"""

import enum
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SettingValueError
from trainer.data.settings import MAX_SEED

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Stream(enum.IntEnum):
    """Purposes of random numbers, each with its own stream. Never renumber them."""

    ORDER = 0
    MIXUP_PARTNERS = 1
    AUGMENT = 2
    NOISE = 3
    MODEL = 4
    PATCHOUT = 5
    CROP = 6
    BUCKETS = 7


def random_bits(
    stream: Stream, *, seed: int, epoch: int = 0, position: int = 0
) -> np.random.Philox:
    """The generator of one stream at one epoch and position; no two ever overlap."""
    if not 0 <= seed <= MAX_SEED:
        raise SettingValueError("seed", f"must be from 0 to {MAX_SEED}, got {seed}")
    if epoch < 0:
        raise SettingValueError("epoch", f"must be at least 0, got {epoch}")
    if position < 0:
        raise SettingValueError("position", f"must be at least 0, got {position}")
    # Drawing increments only the first word, which leaves 2^66 numbers for each position.
    counter = np.array([0, position, epoch, 0], dtype=np.uint64)
    return np.random.Philox(counter=counter, key=np.array([seed, stream], dtype=np.uint64))


def bits_at(
    stream: Stream, *, seed: int, epoch: int, positions: Iterable[int]
) -> Iterator[np.random.Philox]:
    """`random_bits` at each position: one generator that moves on, as a new one takes 8 us."""
    bits = random_bits(stream, seed=seed, epoch=epoch)
    state = bits.state
    for position in positions:
        state["state"]["counter"][1] = position
        bits.state = state
        yield bits


def patchout_seed(seed: int, step: int) -> int:
    """Seed, in [0, 2^63), that draws the patches of a training step; the same on all ranks."""
    return int(random_bits(Stream.PATCHOUT, seed=seed, position=step).random_raw()) >> 1


def uniform(bits: np.random.Philox, size: int) -> FloatArray:
    """The next `size` numbers, uniform in [0, 1) in steps of 2^-53."""
    return to_uniform(np.asarray(bits.random_raw(size), dtype=np.uint64))


def to_uniform(raw: NDArray[np.uint64]) -> FloatArray:
    """Each 64 random bits to a number uniform in [0, 1), in steps of 2^-53."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
