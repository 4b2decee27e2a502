"""The augmentation of one clip in plain code: the reference for whole batches.

N samples, T frames, F mels.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from trainer.data.augment import LOG_MEL_FLOOR
from trainer.data.augment_draws import AugmentDraws


def golden(waveform: Tensor) -> Tensor:
    """AST's features of `[N]`, as its authors' `dataloader.py` computes them: `[T, 128]`."""
    centred = waveform - waveform.mean()
    features: Tensor = kaldi.fbank(
        centred[None],
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return features


def cut(fbank: Tensor, crop: float, num_frames: int) -> Tensor:
    """The crop of a longer clip `[T, F]` for a draw in [0, 1)."""
    first = math.floor(crop * (max(len(fbank) - num_frames, 0) + 1))
    return fbank[first : first + num_frames]


def padded(fbank: Tensor, num_frames: int) -> Tensor:
    """Padded with rows of zeros to `[num_frames, F]` float32."""
    result = torch.zeros(num_frames, fbank.shape[1])
    result[: len(fbank)] = fbank[:num_frames]
    return result


def mixed(clip: Tensor, partner: Tensor, share: float) -> Tensor:
    """Powers added, frame by frame over the clip's length; float64."""
    power = share**2 * clip.double().exp()
    num_shared = min(len(clip), len(partner))
    power[:num_shared] += (1 - share) ** 2 * partner[:num_shared].double().exp()
    return power.clamp(min=math.exp(LOG_MEL_FLOOR)).log()


def cut_waveform(waveform: Tensor, crop: float, num_frames: int) -> Tensor:
    """What `cut` leaves, in samples, and all that follows."""
    num_places = max(1 + (len(waveform) - 400) // 160 - num_frames, 0) + 1
    return waveform[160 * math.floor(crop * num_places) :]


def mixed_waveforms(clip: Tensor, partner: Tensor, share: float) -> Tensor:
    """`[N]` as the authors' `dataloader.py` mixes whole clips."""
    clip, partner = clip - clip.mean(), partner - partner.mean()
    other = torch.zeros_like(clip)
    other[: len(partner)] = partner[: len(clip)]
    mix = share * clip + (1 - share) * other
    return mix - mix.mean()


def augmented_audio(
    clip: Tensor, partner: Tensor, draws: AugmentDraws, row: int, *, num_frames: int, **norms: float
) -> Tensor:
    """The model's input `[num_frames, F]` of a whole waveform and its partner's."""
    x = cut_waveform(clip, draws.crop[row], num_frames)
    if draws.mixup_lambda[row] < 1:
        other = cut_waveform(partner, draws.partner_crop[row], num_frames)
        x = mixed_waveforms(x, other, draws.mixup_lambda[row])
    return finished(golden(x), draws, row, num_frames=num_frames, **norms)


def augmented(
    clip: Tensor,
    partner: Tensor,
    draws: AugmentDraws,
    row: int,
    *,
    num_frames: int,
    mean: float,
    std: float,
) -> Tensor:
    """The model's input `[num_frames, F]` of a whole clip and its partner, by indexing alone."""
    x = cut(clip.double(), draws.crop[row], num_frames)
    if draws.mixup_lambda[row] < 1:
        other = cut(partner, draws.partner_crop[row], num_frames)
        x = mixed(x, other, draws.mixup_lambda[row])
    return finished(x, draws, row, num_frames=num_frames, mean=mean, std=std)


def finished(
    x: Tensor, draws: AugmentDraws, row: int, *, num_frames: int, mean: float, std: float
) -> Tensor:
    """The steps after mixup, for raw log-mels `[T, F]`."""
    x = padded(x, num_frames)
    mel, frame = int(draws.frequency_start[row]), int(draws.time_start[row])
    x[:, mel : mel + int(draws.frequency_width[row])] = 0
    x[frame : frame + int(draws.time_width[row])] = 0
    x = (x - mean) / (2 * std)
    key = np.array([draws.noise_seed[row], 3], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=0).random_raw(-(-x.numel() // 2))
    noise = [(half >> 8) / 2**24 for both in bits.tolist() for half in (both % 2**32, both >> 32)]
    x = x + torch.tensor(noise[: x.numel()]).view_as(x) * draws.noise_scale[row]
    return torch.stack([x[(t - int(draws.roll[row])) % len(x)] for t in range(len(x))])
