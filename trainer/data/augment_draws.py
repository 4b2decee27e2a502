"""Random draws of augmentation, for clips by their positions in an epoch.

In: the settings, the seed, the epoch and the positions of B clips. Out: `AugmentDraws`, and noise
for some of the clips, which `trainer.data.augment` applies on the device.

Draws depend only on the settings, the seed, the epoch and the position, and are made on the CPU, so
they are the same for any batch size, number of ranks and device, and after a restart. Masks, mixup
and shifts that are turned off draw their numbers too and ignore them, and crops and noise have
streams of their own: turning one on does not change the other draws.

B batch, Q clips with noise, T frames, F mels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.data.random_streams import (
    FloatArray,
    IntArray,
    Stream,
    bits_at,
    random_bits,
    to_uniform,
    uniform,
)
from trainer.data.settings import AugmentSettings

NUM_RAW_DRAWS = 8
"""Random 64-bit numbers of one clip, apart from those of its mixup lambda, crop and noise."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AugmentDraws:
    """The draws for B clips; every array is `[B]`."""

    mixup_lambda: FloatArray
    """Weight of the clip itself, its partner's being 1 - lambda; 1.0 if it is not mixed."""
    frequency_start: IntArray
    frequency_width: IntArray
    """The frequency mask covers the mels [start, start + width)."""
    time_start: IntArray
    time_width: IntArray
    """The time mask covers the frames [start, start + width)."""
    noise_scale: FloatArray
    """Highest value of the noise; 0.0 for none."""
    noise_seed: NDArray[np.uint64]
    roll: IntArray
    """Frames to roll by, forward in time where positive."""
    crop: FloatArray
    partner_crop: FloatArray
    """Where the crop begins, as a fraction of all possible starts: from 0, the clip's start, to
    below 1."""

    def __len__(self) -> int:
        return len(self.roll)


def draw_augmentations(
    settings: AugmentSettings,
    *,
    seed: int,
    epoch: int,
    positions: Sequence[int] | IntArray,
    num_mels: int,
    num_frames: int,
) -> AugmentDraws:
    """Draw the augmentation of the clips at these B positions of an epoch.

    `num_mels` and `num_frames` are the size of the padded input. Raises ValueError if a mask
    can be larger than it. Only the mixup lambda relies on a method of NumPy's `Generator`, which a
    NumPy release may change; it is drawn last, so that nothing else would change.
    """
    _check_masks_fit(settings, num_mels, num_frames)
    raw = np.empty((len(positions), NUM_RAW_DRAWS), dtype=np.uint64)
    mixup_lambda = np.ones(len(positions), dtype=np.float64)
    crops = np.zeros((len(positions), 2))
    at = partial(bits_at, seed=seed, epoch=epoch, positions=[*map(int, positions)])
    for item, bits in enumerate(at(Stream.AUGMENT)):
        raw[item] = bits.random_raw(NUM_RAW_DRAWS)
        if to_uniform(raw[item, 0]) < settings.mixup_share:
            generator = np.random.Generator(bits)
            mixup_lambda[item] = generator.beta(settings.mixup_alpha, settings.mixup_alpha)
    if settings.crop == "random":
        for item, bits in enumerate(at(Stream.CROP)):
            crops[item] = uniform(bits, 2)
    u = to_uniform(raw)
    frequency_start, frequency_width = mask_interval(
        u[:, 1], u[:, 2], max_width=settings.frequency_mask, size=num_mels
    )
    time_start, time_width = mask_interval(
        u[:, 3], u[:, 4], max_width=settings.time_mask, size=num_frames
    )
    reach = settings.roll_frames
    return AugmentDraws(
        mixup_lambda=mixup_lambda,
        frequency_start=frequency_start,
        frequency_width=frequency_width,
        time_start=time_start,
        time_width=time_width,
        noise_scale=u[:, 5] / 10 if settings.noise else np.zeros(len(raw)),
        noise_seed=raw[:, 6].copy(),
        roll=np.floor(u[:, 7] * 2 * reach).astype(np.int64) - reach,
        crop=crops[:, 0],
        partner_crop=crops[:, 1],
    )


def mask_interval(
    u_width: FloatArray, u_start: FloatArray, *, max_width: int, size: int
) -> tuple[IntArray, IntArray]:
    """Starts and widths of SpecAugment masks along an axis, from uniform numbers in [0, 1).

    Like `torchaudio.functional.mask_along_axis`: the width is real, uniform in [0, max_width); the
    start is uniform in [0, size - width); then both are rounded down. The integer widths are hence
    0 to max_width - 1, equally likely.
    """
    width = u_width * max_width
    start = u_start * (size - width)
    return start.astype(np.int64), width.astype(np.int64)


def needs_partner(draws: AugmentDraws) -> NDArray[np.bool_]:
    """Which of the B clips are mixed, `[B]`: only their partners have to be read."""
    return draws.mixup_lambda < 1.0


def first_frame(crop: FloatArray, num_frames: IntArray, num_kept: int) -> IntArray:
    """First frame of crops of `num_kept` frames by draws in [0, 1), `[B]`; 0 for shorter clips."""
    num_starts = np.maximum(num_frames - num_kept, 0) + 1
    first: IntArray = np.floor(crop * num_starts).astype(np.int64)
    return first


def draw_noise(draws: AugmentDraws, num_frames: int, num_mels: int) -> Tensor | None:
    """Noise for the Q clips that get any, float32 `[Q, T, F]` in [0, 1); None if Q is 0.

    On the CPU, like all draws; there is so much of it that threads draw it ahead.
    """
    noisy = draws.noise_scale > 0
    if not noisy.any():
        return None
    drawn = [_noise(seed, num_frames, num_mels) for seed in draws.noise_seed[noisy]]
    return torch.from_numpy(np.stack(drawn))


def _noise(seed: np.uint64, num_frames: int, num_mels: int) -> NDArray[np.float32]:
    """Noise uniform in [0, 1), float32 `[T, F]`, in steps of 2^-24."""
    size = num_frames * num_mels
    raw = random_bits(Stream.NOISE, seed=int(seed)).random_raw(-(-size // 2)).view(np.uint32)[:size]
    noise = (raw >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return noise.reshape(num_frames, num_mels)


def _check_masks_fit(settings: AugmentSettings, num_mels: int, num_frames: int) -> None:
    if settings.frequency_mask > num_mels:
        raise ValueError(
            f"frequency_mask: must be at most the {num_mels} mels, got {settings.frequency_mask}"
        )
    if settings.time_mask > num_frames:
        raise ValueError(
            f"time_mask: must be at most the {num_frames} frames of the input, "
            f"got {settings.time_mask}"
        )
