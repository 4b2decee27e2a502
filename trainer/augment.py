"""Training-time augmentation of raw log-mel fbanks, in the order of the published recipe.

In: raw (not normalised) log-mel fbanks of whole clips, and which positions of the epoch they
stand at. Steps, in this order: mixup with a partner, cut or pad to the target length,
SpecAugment, normalisation, noise and roll. Out: the model's input and its targets.

What is drawn at random depends on the seed, the epoch and the position alone and is drawn on the
CPU, so it is the same for any batch size, any number of ranks or workers, any device, and after
a restart. A setting that is turned off draws its numbers all the same and ignores them:
turning one on leaves the others as they were.

Source: section 3.1 of the AST paper (arXiv 2104.01778) and the data loader its authors released;
where they differ the data loader is followed. Padding and masks are zeros in the raw log-mel and
become -mean / (2 std) by the normalisation, +0.467 on AudioSet.

B batch, T frames, F mels, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fbank import ENERGY_FLOOR
from trainer.sampler import FloatArray, IntArray, Stream, random_bits, to_uniform

LOG_MEL_FLOOR = math.log(ENERGY_FLOOR)
"""The front end's lowest value, that of silence: log(1.19e-7)."""

NUM_RAW_DRAWS = 8
"""Random 64-bit numbers of one sample, apart from those of its mixup lambda."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSettings:
    """What is done to training clips; defaults are those of AudioSet."""

    frequency_mask: int = 48
    """Frequency masks are narrower than this many mel bins; 0 for none."""
    time_mask: int = 192
    """Time masks are shorter than this many frames; 0 for none."""
    mixup_share: float = 0.5
    """Share of the clips that are mixed with another one; 0 for none."""
    mixup_alpha: float = 10.0
    """The mixing weight is drawn from Beta(alpha, alpha)."""
    noise: bool = False
    """Whether to add noise U[0,1) * U[0,1) / 10 to the normalised input."""
    roll_frames: int = 0
    """The input is rolled in time by -roll_frames to roll_frames - 1 frames; 0 for none."""

    def __post_init__(self) -> None:
        for name in ("frequency_mask", "time_mask", "roll_frames"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.mixup_share <= 1:
            raise ValueError(f"mixup_share: must be from 0 to 1, got {self.mixup_share}")
        if not (self.mixup_alpha > 0 and math.isfinite(self.mixup_alpha)):
            raise ValueError(f"mixup_alpha: must be a number above 0, got {self.mixup_alpha}")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AugmentDraws:
    """What was drawn for B samples; every array is `[B]`."""

    mixup_lambda: FloatArray
    """Weight of the clip itself, its partner's being 1 - lambda; 1.0 where it is not mixed."""
    frequency_start: IntArray
    frequency_width: IntArray
    """The frequency mask covers the mels [start, start + width)."""
    time_start: IntArray
    time_width: IntArray
    """The time mask covers the frames [start, start + width)."""
    noise_scale: FloatArray
    """Highest value of the noise; 0.0 where there is none."""
    noise_seed: NDArray[np.uint64]
    roll: IntArray
    """Frames to roll by, forward in time where positive."""

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
    """Draw the augmentation of the samples at these positions of an epoch, B of them.

    `num_mels` and `num_frames` are the size of the padded input. Raises ValueError if a mask
    can be larger than it. The mixup lambda is the one draw that relies on a sampler of NumPy's
    `Generator`, which a NumPy release may change; it is drawn last, so that nothing else would.
    """
    _check_masks_fit(settings, num_mels, num_frames)
    raw = np.empty((len(positions), NUM_RAW_DRAWS), dtype=np.uint64)
    mixed_lambda = np.empty(len(positions), dtype=np.float64)
    for row, position in enumerate(positions):
        bits = random_bits(Stream.AUGMENT, seed=seed, epoch=epoch, position=int(position))
        raw[row] = bits.random_raw(NUM_RAW_DRAWS)
        generator = np.random.Generator(bits)
        mixed_lambda[row] = generator.beta(settings.mixup_alpha, settings.mixup_alpha)
    u = to_uniform(raw)
    frequency_start, frequency_width = mask_interval(
        u[:, 1], u[:, 2], max_width=settings.frequency_mask, size=num_mels
    )
    time_start, time_width = mask_interval(
        u[:, 3], u[:, 4], max_width=settings.time_mask, size=num_frames
    )
    reach = settings.roll_frames
    return AugmentDraws(
        mixup_lambda=np.where(u[:, 0] < settings.mixup_share, mixed_lambda, 1.0),
        frequency_start=frequency_start,
        frequency_width=frequency_width,
        time_start=time_start,
        time_width=time_width,
        noise_scale=u[:, 5] / 10 if settings.noise else np.zeros(len(raw)),
        noise_seed=raw[:, 6].copy(),
        roll=np.floor(u[:, 7] * 2 * reach).astype(np.int64) - reach,
    )


def mask_interval(
    u_width: FloatArray, u_start: FloatArray, *, max_width: int, size: int
) -> tuple[IntArray, IntArray]:
    """Starts and widths of SpecAugment masks along an axis, from uniform numbers in [0, 1).

    As `torchaudio.functional.mask_along_axis`: the width is real, uniform in [0, max_width); the
    start is uniform in [0, size - width); then both are cut down to integers. The widths are
    hence 0 to max_width - 1, equally likely.
    """
    width = u_width * max_width
    start = u_start * (size - width)
    return start.astype(np.int64), width.astype(np.int64)


def needs_partner(draws: AugmentDraws) -> NDArray[np.bool_]:
    """Which of the B samples are mixed, `[B]`: only their partners have to be read."""
    return draws.mixup_lambda < 1.0


def mix_log_mel(primary: Tensor, partner: Tensor, mixup_lambda: float) -> Tensor:
    """Mix two raw, unpadded log-mel fbanks, `[T, F]` and `[T', F]`, into a float32 `[T, F]`.

    The recipe mixes waveforms, lambda times the one and 1 - lambda times the other, which adds
    their amplitudes. Here their powers are added, lambda^2 and (1 - lambda)^2 times, which is
    the same up to the cross term of the two signals, whose mean is 0.

    As with waveforms the partner is cut to the primary's length, or adds nothing past its own
    end. The front end's floor on the power holds for the mix too: two silent clips mix to
    silence, not to something below it.
    """
    if not 0 <= mixup_lambda <= 1:
        raise ValueError(f"mixup_lambda: must be from 0 to 1, got {mixup_lambda}")
    mixed = primary.float() + _log_power_gain(mixup_lambda)
    num_shared = min(len(primary), len(partner))
    other = partner[:num_shared].float() + _log_power_gain(1 - mixup_lambda)
    mixed[:num_shared] = torch.logaddexp(mixed[:num_shared], other)
    return mixed.clamp_(min=LOG_MEL_FLOOR)


def mix_targets(primary: Tensor, partner: Tensor, mixup_lambda: float) -> Tensor:
    """Targets `[C]` of a mix: lambda and 1 - lambda, added where both have the label."""
    return mixup_lambda * primary + (1 - mixup_lambda) * partner


def pad_to(fbank: Tensor, num_frames: int) -> Tensor:
    """Cut a raw log-mel `[T, F]` to its first frames, or append rows of zeros: `[num_frames, F]`.

    Zero in the raw log-mel is not silence, which is `LOG_MEL_FLOOR`, but it is what the
    published models were trained with.
    """
    num_missing = num_frames - len(fbank)
    if num_missing <= 0:
        return fbank[:num_frames]
    return torch.nn.functional.pad(fbank, (0, 0, 0, num_missing))


def mask_(x: Tensor, draws: AugmentDraws) -> Tensor:
    """Set the masked mels and frames of raw, padded log-mels `[B, T, F]` to 0, in place."""
    _check_rows(x, draws)
    in_time = _within(x.shape[1], draws.time_start, draws.time_width, x.device)
    in_frequency = _within(x.shape[2], draws.frequency_start, draws.frequency_width, x.device)
    return x.masked_fill_(in_time[:, :, None] | in_frequency[:, None, :], 0.0)


def normalise(x: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / (2 std), with the training data's mean and std: mean 0, std 0.5."""
    return (x - mean) / (2 * std)


def add_noise_and_roll(x: Tensor, draws: AugmentDraws) -> Tensor:
    """Add each sample's noise to normalised inputs `[B, T, F]`, in place, then roll them in time.

    Returns the rolled inputs, which are `x` itself where nothing is rolled.
    """
    _check_rows(x, draws)
    num_frames, num_mels = x.shape[1:]
    for row in np.flatnonzero(draws.noise_scale):
        noise = _noise(int(draws.noise_seed[row]), num_frames, num_mels)
        x[row] += (noise * float(draws.noise_scale[row])).to(x.device)
    if not draws.roll.any():
        return x
    roll = torch.tensor(draws.roll, device=x.device)
    source = (torch.arange(num_frames, device=x.device) - roll[:, None]) % num_frames
    return x[torch.arange(len(x), device=x.device)[:, None], source]


def augment_batch(x: Tensor, draws: AugmentDraws, *, mean: float, std: float) -> Tensor:
    """All that follows mixup and padding: raw `[B, T, F]` to the model's input `[B, T, F]`.

    `x` itself is changed: its masks are set.
    """
    return add_noise_and_roll(normalise(mask_(x, draws), mean, std), draws)


def _log_power_gain(amplitude: float) -> float:
    """What scaling a waveform adds to its log power."""
    return 2 * math.log(amplitude) if amplitude > 0 else -math.inf


def _within(size: int, start: IntArray, width: IntArray, device: torch.device) -> Tensor:
    """Which of `size` indices lie in [start, start + width), `[B, size]` for B intervals."""
    index = torch.arange(size, device=device)
    first = torch.tensor(start, device=device)[:, None]
    end = torch.tensor(start + width, device=device)[:, None]
    return (index >= first) & (index < end)


def _noise(seed: int, num_frames: int, num_mels: int) -> Tensor:
    """Noise uniform in [0, 1), float32 `[T, F]`, in steps of 2^-24."""
    size = num_frames * num_mels
    raw = random_bits(Stream.NOISE, seed=seed).random_raw(-(-size // 2)).view(np.uint32)[:size]
    noise = (raw >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return torch.from_numpy(noise.reshape(num_frames, num_mels))


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


def _check_rows(x: Tensor, draws: AugmentDraws) -> None:
    if x.ndim != 3 or len(x) != len(draws):
        raise ValueError(f"x: must be [{len(draws)}, frames, mels], got {list(x.shape)}")
