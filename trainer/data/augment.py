"""Training-time augmentation of raw log-mel fbanks, in the order of the published recipe.

In: a batch of raw (not normalised) log-mel fbanks, or of audio, cut or padded to the target length,
and which positions of the epoch they stand at. Steps, in this order, all of them for the whole
batch and on its device: mixup with partners over what is not padding, of audio the fbank,
SpecAugment, normalisation, noise and roll. Out: the model's input.

What is drawn at random depends on the seed, the epoch and the position alone and is drawn on the
CPU, so it is the same for any batch size, any number of ranks or workers, any device, and after
a restart. A setting that is turned off draws its numbers all the same and ignores them:
turning one on leaves the others as they were.

Source: section 3.1 of the AST paper (arXiv 2104.01778) and the data loader its authors released;
where they differ the data loader is followed. Padding and masks are zeros in the raw log-mel and
become -mean / (2 std) by the normalisation, +0.467 on AudioSet.

B batch, P partners of mixup, T frames, F mels, S samples, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.stored_audio import FULL_SCALE
from pipeline.fbank import ENERGY_FLOOR, fbank
from pipeline.fbank_settings import FbankSettings
from trainer.data.sampler import FloatArray, IntArray, Stream, random_bits, to_uniform, uniform
from trainer.data.settings import AugmentSettings

LOG_MEL_FLOOR = math.log(ENERGY_FLOOR)
"""The front end's lowest value, that of silence: log(1.19e-7)."""

NUM_RAW_DRAWS = 8
"""Random 64-bit numbers of one sample, apart from those of its mixup lambda."""


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
    crop: FloatArray
    partner_crop: FloatArray
    """Where a stretch begins, of all places where it can: from 0, the clip's start, to below 1."""

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
    crops = np.zeros((len(positions), 2))
    for row, position in enumerate(positions):
        bits = random_bits(Stream.AUGMENT, seed=seed, epoch=epoch, position=int(position))
        raw[row] = bits.random_raw(NUM_RAW_DRAWS)
        generator = np.random.Generator(bits)
        mixed_lambda[row] = generator.beta(settings.mixup_alpha, settings.mixup_alpha)
        if settings.crop == "random":
            place = random_bits(Stream.CROP, seed=seed, epoch=epoch, position=int(position))
            crops[row] = uniform(place, 2)
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
        crop=crops[:, 0],
        partner_crop=crops[:, 1],
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


def first_frame(crop: FloatArray, num_frames: IntArray, num_kept: int) -> IntArray:
    """Where `num_kept` frames of clips begin, `[B]`, by draws in [0, 1): at 0 if it has no more."""
    num_places = np.maximum(num_frames - num_kept, 0) + 1
    first: IntArray = np.floor(crop * num_places).astype(np.int64)
    return first


def mix_log_mel(fbanks: Tensor, num_frames: Tensor, draws: AugmentDraws) -> Tensor:
    """Mix the B first of raw log-mels with the P others, the partners of those that are mixed.

    The recipe mixes waveforms, lambda times the one and 1 - lambda times the other, which adds
    their amplitudes. Here their powers are added, lambda^2 and (1 - lambda)^2 times, which is
    the same up to the cross term of the two signals, whose mean is 0.

    As with waveforms the partner is cut to the clip's length, or adds nothing past its own end.
    The front end's floor on the power holds for the mix too: two silent clips mix to silence, not
    to something below it.

    Args:
        fbanks: `[B + P, T, F]`, padded with zeros, of any float type; not changed.
        num_frames: of each without its padding, `[B + P]`.
        draws: of the B clips.

    Returns:
        float32 `[B, T, F]`, padded with zeros.
    """
    mixed = np.flatnonzero(needs_partner(draws))
    _check_rows(fbanks, len(draws) + len(mixed))
    x = fbanks[: len(draws)].to(torch.float32, copy=True)
    if len(mixed) == 0:
        return x
    share, rows = draws.mixup_lambda[mixed], _on(x.device, mixed)
    partners = fbanks[len(draws) :].float() + _log_power_gain(1 - share, x.device)
    partners.masked_fill_(_past(partners, num_frames[len(draws) :])[:, :, None], -math.inf)
    sums = torch.logaddexp(x[rows] + _log_power_gain(share, x.device), partners)
    past = _past(sums, num_frames[rows])[:, :, None]
    x[rows] = sums.clamp_(min=LOG_MEL_FLOOR).masked_fill_(past, 0.0)
    return x


def mix_waveforms(samples: Tensor, num_samples: Tensor, draws: AugmentDraws | None) -> Tensor:
    """Mix the B first of waveforms with the P others, as the authors' data loader does.

    Each is freed of its mean, then lambda times the one and 1 - lambda times the other are added
    and freed of the mean once more. The partner is cut to the clip's length, or is followed by
    zeros.

    Args:
        samples: `[B + P, S]` int16, padded with zeros; not changed.
        num_samples: of each without its padding, `[B + P]`.
        draws: of the B clips; None: nothing is mixed.

    Returns:
        float32 `[B, S]` in [-1, 1], padded with zeros.
    """
    x = _without_mean(samples.float() / FULL_SCALE, num_samples)
    if draws is None:
        return x
    mixed = np.flatnonzero(needs_partner(draws))
    _check_rows(x, len(draws) + len(mixed), "samples")
    if len(mixed) > 0:
        rows = _on(x.device, mixed)
        share = _on(x.device, draws.mixup_lambda[mixed].astype(np.float32))[:, None]
        sums = share * x[rows] + (1 - share) * x[len(draws) :]
        x[rows] = _without_mean(sums, num_samples[rows])
    return x[: len(draws)]


def raw_log_mel(
    stored: Tensor,
    lengths: Tensor,
    draws: AugmentDraws | None,
    audio_fbank: FbankSettings | None,
) -> Tensor:
    """What clips are stored as, mixed where `draws` say so, as raw log-mel.

    Args:
        stored: the B clips and P partners, as `mix_log_mel` or `mix_waveforms` takes them.
        lengths: of each without its padding, `[B + P]`.
        draws: of the B clips; None: nothing is mixed.
        audio_fbank: how the fbank is computed of audio; None where fbanks are stored.

    Returns:
        float32 `[B, T, F]`, padded with zeros.
    """
    if audio_fbank is None:
        return stored.float() if draws is None else mix_log_mel(stored, lengths, draws)
    waveforms = mix_waveforms(stored, lengths, draws)
    x = fbank(waveforms, audio_fbank)
    num_frames = audio_fbank.num_frames(lengths[: len(x)])
    return x.masked_fill_(_past(x, num_frames)[:, :, None], 0.0)


def mix_targets(targets: Tensor, partners: Tensor, draws: AugmentDraws) -> Tensor:
    """Targets of mixes, `[B, C]`: lambda and 1 - lambda, added where both have the label."""
    share = torch.from_numpy(draws.mixup_lambda)[:, None]
    return (share * targets + (1 - share) * partners).float()


def mask_(x: Tensor, draws: AugmentDraws) -> Tensor:
    """Set the masked mels and frames of raw, padded log-mels `[B, T, F]` to 0, in place."""
    _check_rows(x, len(draws))
    in_time = _within(x.shape[1], draws.time_start, draws.time_width, x.device)
    in_frequency = _within(x.shape[2], draws.frequency_start, draws.frequency_width, x.device)
    return x.masked_fill_(in_time[:, :, None] | in_frequency[:, None, :], 0.0)


def normalise(x: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / (2 std), with the training data's mean and std: mean 0, std 0.5."""
    return (x - mean) / (2 * std)


def draw_noise(draws: AugmentDraws, num_frames: int, num_mels: int) -> Tensor | None:
    """Noise of the Q samples that get any, float32 `[Q, T, F]` in [0, 1); None: of no sample.

    On the CPU, as all that is drawn; there is so much of it that threads draw it ahead.
    """
    noisy = draws.noise_scale > 0
    if not noisy.any():
        return None
    drawn = [_noise(seed, num_frames, num_mels) for seed in draws.noise_seed[noisy]]
    return torch.from_numpy(np.stack(drawn))


def add_noise_and_roll(x: Tensor, draws: AugmentDraws, noise: Tensor | None) -> Tensor:
    """Add each sample's noise to normalised inputs `[B, T, F]`, in place, then roll them in time.

    Args:
        x: the inputs.
        draws: of the B samples.
        noise: as `draw_noise` gives it, on the device.

    Returns:
        The rolled inputs, which are `x` itself where nothing is rolled.
    """
    _check_rows(x, len(draws))
    num_frames = x.shape[1]
    if noise is not None:
        noisy = np.flatnonzero(draws.noise_scale)
        scale = _on(x.device, draws.noise_scale[noisy].astype(np.float32))
        x[_on(x.device, noisy)] += noise * scale[:, None, None]
    if not draws.roll.any():
        return x
    roll = _on(x.device, draws.roll)
    source = (torch.arange(num_frames, device=x.device) - roll[:, None]) % num_frames
    return x[torch.arange(len(x), device=x.device)[:, None], source]


def augment_batch(
    stored: Tensor,
    lengths: Tensor,
    draws: AugmentDraws,
    audio_fbank: FbankSettings | None = None,
    *,
    noise: Tensor | None,
    mean: float,
    std: float,
) -> Tensor:
    """All of it: clips and partners, as `raw_log_mel` takes them, to the input `[B, T, F]`."""
    x = mask_(raw_log_mel(stored, lengths, draws, audio_fbank), draws)
    return add_noise_and_roll(normalise(x, mean, std), draws, noise)


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU where a GPU copies them from while the host goes on; else as they are.

    The memory is not used again before the copies that were asked for are done.
    """
    return values.pin_memory() if device.type == "cuda" else values


def _on(device: torch.device, array: NDArray[Any]) -> Tensor:
    """Not waiting for what the device has still to do, as a plain `torch.tensor` would."""
    return pinned(torch.from_numpy(array), device).to(device, non_blocking=True)


def _log_power_gain(amplitude: FloatArray, device: torch.device) -> Tensor:
    """What scaling waveforms adds to their log powers, `[P, 1, 1]`."""
    with np.errstate(divide="ignore"):
        return _on(device, (2 * np.log(amplitude)).astype(np.float32))[:, None, None]


def _past(x: Tensor, lengths: Tensor) -> Tensor:
    """Which frames of `[B, T, F]`, or samples of `[B, S]`, are past the end of their clip."""
    return torch.arange(x.shape[1], device=x.device) >= lengths[:, None]


def _without_mean(x: Tensor, num_samples: Tensor) -> Tensor:
    """Waveforms `[B, S]` with mean 0 up to their end, and zeros past it."""
    past = _past(x, num_samples)
    mean = x.masked_fill(past, 0.0).sum(dim=1) / num_samples
    return (x - mean[:, None]).masked_fill_(past, 0.0)


def _within(size: int, start: IntArray, width: IntArray, device: torch.device) -> Tensor:
    """Which of `size` indices lie in [start, start + width), `[B, size]` for B intervals."""
    index = torch.arange(size, device=device)
    first, end = _on(device, start)[:, None], _on(device, start + width)[:, None]
    return (index >= first) & (index < end)


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


def _check_rows(x: Tensor, num_rows: int, axes: str = "frames, mels") -> None:
    if x.ndim != 1 + len(axes.split()) or len(x) != num_rows:
        raise ValueError(f"x: must be [{num_rows}, {axes}], got {list(x.shape)}")
