"""Training-time augmentation of raw log-mel fbanks, in the order of the published recipe.

In: a batch of raw (not normalised) log-mel fbanks, or of audio, cut or padded to the target length,
and the random draws for each clip (`trainer.data.augment_draws`). Steps, in this order, for the
whole batch and on its device: mixup with partners (never in the padding), the fbank of audio,
SpecAugment, normalisation, noise and roll. Out: the model's input.

Source: section 3.1 of the AST paper (arXiv 2104.01778) and the data loader its authors released;
where they differ this follows the data loader. Padding and masks are zeros in the raw log-mel, and
normalisation turns them into -mean / (2 std), +0.467 on AudioSet.

B batch, P mixup partners, T frames, F mels, S samples, C classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.audio.stored_audio import FULL_SCALE
from pipeline.fbank import ENERGY_FLOOR, fbank
from pipeline.fbank_settings import FbankSettings
from trainer.data.augment_draws import AugmentDraws, needs_partner
from trainer.data.random_streams import FloatArray, IntArray
from trainer.data.transfer import on_device

LOG_MEL_FLOOR = math.log(ENERGY_FLOOR)
"""The front end's lowest value, that of silence: log(1.19e-7)."""


def mix_log_mel(fbanks: Tensor, num_frames: Tensor, draws: AugmentDraws) -> Tensor:
    """Mix the first B raw log-mels with the other P, the partners of the clips to mix.

    The recipe mixes waveforms, lambda times the clip plus 1 - lambda times its partner, which adds
    amplitudes. This adds powers, times lambda^2 and (1 - lambda)^2, which is the same up to the
    cross term of the two signals, whose mean is 0.

    As with waveforms, the partner is cut to the clip's length, or adds nothing past its own end.
    The front end's floor on the power holds for the mix too: two silent clips mix to silence, not
    to something below it.

    Args:
        fbanks: `[B + P, T, F]`, padded with zeros, of any float type; not changed.
        num_frames: of each without its padding, `[B + P]`.
        draws: of the B clips.

    Returns:
        float32 `[B, T, F]`, padded with zeros.
    """
    indices = np.flatnonzero(needs_partner(draws))
    _check_shape(fbanks, len(draws) + len(indices))
    x = fbanks[: len(draws)].to(torch.float32, copy=True)
    if len(indices) == 0:
        return x
    lambdas, mixed = draws.mixup_lambda[indices], on_device(x.device, indices)
    partners = fbanks[len(draws) :].float() + _log_power_gain(1 - lambdas, x.device)
    partners.masked_fill_(_past(partners, num_frames[len(draws) :])[:, :, None], -math.inf)
    sums = torch.logaddexp(x[mixed] + _log_power_gain(lambdas, x.device), partners)
    past = _past(sums, num_frames[mixed])[:, :, None]
    x[mixed] = sums.clamp_(min=LOG_MEL_FLOOR).masked_fill_(past, 0.0)
    return x


def mix_waveforms(samples: Tensor, num_samples: Tensor, draws: AugmentDraws | None) -> Tensor:
    """Mix the first B waveforms with the other P, as the authors' data loader does.

    Each has its mean subtracted, then lambda times the clip plus 1 - lambda times its partner has
    its mean subtracted once more. The partner is cut to the clip's length, or padded with zeros.

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
    indices = np.flatnonzero(needs_partner(draws))
    _check_shape(x, len(draws) + len(indices), "samples")
    if len(indices) > 0:
        mixed = on_device(x.device, indices)
        lambdas = on_device(x.device, draws.mixup_lambda[indices].astype(np.float32))[:, None]
        sums = lambdas * x[mixed] + (1 - lambdas) * x[len(draws) :]
        x[mixed] = _without_mean(sums, num_samples[mixed])
    return x[: len(draws)]


def raw_log_mel(
    stored: Tensor,
    lengths: Tensor,
    draws: AugmentDraws | None,
    audio_fbank: FbankSettings | None,
) -> Tensor:
    """Raw log-mel of stored clips, mixed if there are `draws`.

    Args:
        stored: the B clips and P partners, as `mix_log_mel` or `mix_waveforms` takes them.
        lengths: of each without its padding, `[B + P]`.
        draws: of the B clips; None: nothing is mixed.
        audio_fbank: how fbanks are computed from audio; None if fbanks are stored.

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
    """Targets of mixed clips, `[B, C]`: lambda times the clip's, 1 - lambda times the partner's."""
    lambdas = torch.from_numpy(draws.mixup_lambda)[:, None]
    return (lambdas * targets + (1 - lambdas) * partners).float()


def mask_(x: Tensor, draws: AugmentDraws) -> Tensor:
    """Set the masked mels and frames of raw, padded log-mels `[B, T, F]` to 0, in place."""
    _check_shape(x, len(draws))
    in_time = _within(x.shape[1], draws.time_start, draws.time_width, x.device)
    in_frequency = _within(x.shape[2], draws.frequency_start, draws.frequency_width, x.device)
    return x.masked_fill_(in_time[:, :, None] | in_frequency[:, None, :], 0.0)


def normalise(x: Tensor, mean: float, std: float) -> Tensor:
    """(x - mean) / (2 std): mean 0 and std 0.5 over the training data."""
    return (x - mean) / (2 * std)


def add_noise_and_roll(x: Tensor, draws: AugmentDraws, noise: Tensor | None) -> Tensor:
    """Add each clip's noise to normalised inputs `[B, T, F]`, in place, then roll them in time.

    Args:
        x: the inputs.
        draws: of the B clips.
        noise: from `draw_noise`, on the device.

    Returns:
        The rolled inputs; `x` itself if nothing is rolled.
    """
    _check_shape(x, len(draws))
    num_frames = x.shape[1]
    if noise is not None:
        noisy = np.flatnonzero(draws.noise_scale)
        scale = on_device(x.device, draws.noise_scale[noisy].astype(np.float32))
        x[on_device(x.device, noisy)] += noise * scale[:, None, None]
    if not draws.roll.any():
        return x
    roll = on_device(x.device, draws.roll)
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
    """All steps: clips and partners, as `raw_log_mel` takes them, to the input `[B, T, F]`."""
    x = mask_(raw_log_mel(stored, lengths, draws, audio_fbank), draws)
    return add_noise_and_roll(normalise(x, mean, std), draws, noise)


def _log_power_gain(amplitude: FloatArray, device: torch.device) -> Tensor:
    """What scaling waveforms adds to their log powers, `[P, 1, 1]`."""
    with np.errstate(divide="ignore"):
        return on_device(device, (2 * np.log(amplitude)).astype(np.float32))[:, None, None]


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
    first, end = on_device(device, start)[:, None], on_device(device, start + width)[:, None]
    return (index >= first) & (index < end)


def _check_shape(x: Tensor, num_clips: int, axes: str = "frames, mels") -> None:
    if x.ndim != 1 + len(axes.split()) or len(x) != num_clips:
        raise ValueError(f"x: must be [{num_clips}, {axes}], got {list(x.shape)}")
