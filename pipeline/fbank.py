"""Kaldi-compatible log-mel filter banks, as AST computes them.

In: mono waveforms in [-1, 1], 16 kHz by default. Steps: remove the clip's mean; cut into 25 ms
frames every 10 ms; per frame remove the mean, pre-emphasise, apply the Hann window, take the power
spectrum; mel filters; natural log. Out: `[T, F]` raw log-mels, neither padded nor normalised.

The golden reference is `torchaudio.compliance.kaldi.fbank` with the arguments of the AST authors'
`dataloader.py` (`htk_compat=True, use_energy=False, window_type="hanning", num_mel_bins=128,
dither=0.0, frame_shift=10`). The paper (section 2.1) says Hamming window; the code behind the
published scores uses Hann, and so does this file.

Shapes: B clips, N samples, T frames, F mel bins, K points of the FFT.
"""

import threading
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchaudio.compliance import kaldi

from pipeline.fbank_settings import FbankSettings

ENERGY_FLOOR = torch.finfo(torch.float32).eps
"""Mel energies below this (1.19e-7) are raised to it before the log."""


_FRAMES_PER_BLOCK = 1024
"""Frames computed at a time on a CPU: a clip of 10 s, or as much as buffers of 2 MB hold."""
_FRAMES_PER_DEVICE_BLOCK = 65_536
"""Frames computed at a time on other devices: 64 such clips, about 0.5 GB with intermediates."""
_MEL_BANDS = 8
"""Groups of neighbouring mel bins; each reads only its part of the spectrum."""


def fbank(waveform: Tensor, settings: FbankSettings) -> Tensor:
    """Compute the log-mel filter bank of a clip, or of several of one length at once.

    Up to the FFT, every operation rounds exactly as in the golden reference: where energy is near
    the floor, a different but equally good rounding makes two correct float32 fbanks of real audio
    differ by up to 3e-3.

    Args:
        waveform: `[N]` or `[B, N]`, float32 (or float64) on any device, N at least one frame.
        settings: of the fbank.

    Returns:
        `[T, F]` or `[B, T, F]` on the waveform's device and of its dtype,
        `T = settings.num_frames(N)`.

    Raises:
        ValueError: the waveform has another number of axes or is shorter than one frame.
    """
    if waveform.dim() not in (1, 2) or waveform.shape[-1] < settings.frame_length:
        raise ValueError(
            f"waveform: must be [N] or [B, N] with N >= {settings.frame_length} samples, "
            f"got {list(waveform.shape)}"
        )
    window, bands = _constants(settings, waveform.device, waveform.dtype)
    centred = waveform - waveform.mean(dim=-1, keepdim=True)
    frames = centred.unfold(-1, settings.frame_length, settings.frame_shift)
    shape = (*frames.shape[:-1], settings.num_mels)
    if waveform.dim() == 2:
        frames = frames.flatten(0, 1)
    out = waveform.new_empty(frames.shape[0], settings.num_mels)
    if waveform.device.type == "cpu":
        block, buffers = _FRAMES_PER_BLOCK, _scratch.buffers(settings, waveform)
    else:
        block = min(len(frames), _FRAMES_PER_DEVICE_BLOCK)
        buffers = _Buffers.allocate(block, settings, waveform)
    for start in range(0, frames.shape[0], block):
        power = _power_spectra(frames[start : start + block], window, settings, buffers)
        for band in bands:
            mels = out[start : start + block, band.first_mel : band.end_mel]
            torch.mm(power[:, band.first : band.end], band.filters, out=mels)
    return out.clamp_(min=ENERGY_FLOOR).log_().view(shape)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Buffers of one block, reused for the next."""

    centred: Tensor
    padded: Tensor

    @classmethod
    def allocate(cls, num_frames: int, settings: FbankSettings, like: Tensor) -> "_Buffers":
        return cls(
            centred=like.new_empty(num_frames, settings.frame_length),
            padded=like.new_zeros(num_frames, settings.fft_length),
        )


class _Scratch(threading.local):
    """Buffers that a thread keeps from clip to clip: page faults of new memory took as long as all
    the arithmetic."""

    def __init__(self) -> None:
        self._key: tuple[FbankSettings, torch.dtype] | None = None

    def buffers(self, settings: FbankSettings, like: Tensor) -> _Buffers:
        if self._key != (settings, like.dtype):
            with torch.inference_mode(False):  # inference tensors cannot be used outside of it
                self._buffers = _Buffers.allocate(_FRAMES_PER_BLOCK, settings, like)
            self._key = (settings, like.dtype)
        return self._buffers


_scratch = _Scratch()


def _power_spectra(
    frames: Tensor, window: Tensor, settings: FbankSettings, buffers: _Buffers
) -> Tensor:
    """`[T, frame_length]` frames -> `[T, K + 2]`: squared real and imaginary parts, interleaved."""
    num_frames = frames.shape[0]
    centred, padded = buffers.centred[:num_frames], buffers.padded[:num_frames]
    samples = padded[:, : settings.frame_length]
    torch.sub(frames, frames.mean(dim=1, keepdim=True), out=centred)
    # Multiply, then subtract: a fused multiply-add would round differently from the reference.
    torch.mul(centred, settings.preemphasis, out=samples)
    centred[:, 1:] -= samples[:, :-1]
    centred[:, 0] -= samples[:, 0]
    torch.mul(centred, window, out=samples)
    parts = torch.view_as_real(torch.fft.rfft(padded))
    return parts.mul_(parts).flatten(1)


@dataclass(frozen=True, slots=True)
class _Band:
    """Filters of neighbouring mel bins, and the range in which they are not zero."""

    first_mel: int
    end_mel: int
    first: int
    end: int
    filters: Tensor
    """`[end - first, end_mel - first_mel]`, each row twice, for the real and the imaginary part."""


@lru_cache(maxsize=8)
def _constants(
    settings: FbankSettings, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, list[_Band]]:
    """The window `[frame_length]` and the mel filters."""
    window = torch.hann_window(settings.frame_length, periodic=False, device=device, dtype=dtype)
    filters, _ = kaldi.get_mel_banks(
        settings.num_mels,
        settings.fft_length,
        float(settings.sample_rate_hz),
        settings.low_hz,
        0.0,
        100.0,
        -500.0,
        1.0,
    )
    bands = []
    for mels in torch.arange(settings.num_mels).tensor_split(_MEL_BANDS):
        if len(mels):
            first_mel, end_mel = int(mels[0]), int(mels[-1]) + 1
            bins = filters[mels].any(dim=0).nonzero()
            first, end = (int(bins.min()), int(bins.max()) + 1) if len(bins) else (0, 1)
            doubled = filters[mels, first:end].T.repeat_interleave(2, dim=0).contiguous()
            doubled = doubled.to(device=device, dtype=dtype)
            bands.append(_Band(first_mel, end_mel, 2 * first, 2 * end, doubled))
    return window, bands
