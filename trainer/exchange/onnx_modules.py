"""The parts of an exported model, as modules that `torch.export` can trace.

`FbankGraph`: waveforms in, raw log-mels out, cut or padded as evaluation does. `ScoreGraph`: raw
log-mels in, scores out. Both take any number of clips and any length, so they hold no branch on a
shape, and only operators that every ONNX runtime has: the FFT is a matrix product.

B batch, N samples, T frames, F mels, K points of the FFT, P class tokens, D width, C classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchaudio.compliance import kaldi

from pipeline.fbank import ENERGY_FLOOR
from pipeline.fbank_settings import FbankSettings
from trainer.data.augment import normalise
from trainer.model.ast import AST
from trainer.optim.loss import scores
from trainer.optim.settings import ScoreFunction


class FbankGraph(nn.Module):
    """`pipeline.fbank.fbank` and the padding of the evaluation.

    It differs from `fbank` by the rounding of float32 sums only. Like the fbanks in a data set, its
    own are rounded to float16.
    """

    window: Tensor
    dft: Tensor
    filters: Tensor
    lengths: Tensor
    offsets: Tensor

    def __init__(self, settings: FbankSettings, lengths: Sequence[int]) -> None:
        """`lengths`: frames to pad to, increasing: to the first that holds the clip."""
        super().__init__()
        self.settings = settings
        self.longest, self.has_one_length = lengths[-1], len(lengths) == 1
        window = torch.hann_window(settings.frame_length, periodic=False)
        self.register_buffer("window", window)
        self.register_buffer("dft", _dft(settings))
        self.register_buffer("filters", _mel_filters(settings))
        self.register_buffer("lengths", torch.tensor(lengths))
        self.register_buffer("offsets", torch.arange(settings.frame_length))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Raw log-mels `[B, T, F]` of waveforms `[B, N]` in [-1, 1]; N at least one frame."""
        settings = self.settings
        num_frames = 1 + (waveforms.shape[1] - settings.frame_length) // settings.frame_shift
        frames = self._frames(waveforms - waveforms.mean(dim=1, keepdim=True), num_frames)
        frames = frames - frames.mean(dim=2, keepdim=True)
        previous = torch.cat([frames[:, :, :1], frames[:, :, :-1]], dim=2)
        parts = ((frames - settings.preemphasis * previous) * self.window) @ self.dft
        log_mels = ((parts * parts) @ self.filters).clamp(min=ENERGY_FLOOR).log()
        return self._padded(log_mels.half().float(), num_frames)

    def _frames(self, waveforms: Tensor, num_frames: int) -> Tensor:
        """Frames `[B, T, frame_length]`, always the first: a runtime rejects too short a clip."""
        later = torch.arange(1, num_frames) * self.settings.frame_shift
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), later])
        indices = (starts[:, None] + self.offsets).flatten()
        samples = waveforms.index_select(1, indices)
        return samples.reshape(waveforms.shape[0], -1, self.settings.frame_length)

    def _padded(self, log_mels: Tensor, num_frames: int) -> Tensor:
        zeros = log_mels.new_zeros(log_mels.shape[0], self.longest, self.settings.num_mels)
        padded = torch.cat([log_mels, zeros], dim=1)
        if self.has_one_length:
            return padded[:, : self.longest]
        # The first length, and each step to the next while the clip is longer.
        is_longer = self.lengths[:-1] < num_frames
        length = (self.lengths[0] + (is_longer * self.lengths.diff()).sum()).item()
        return padded[:, :length]


def _dft(settings: FbankSettings) -> Tensor:
    """`[frame_length, K]`: cosines of the frequencies below Nyquist, then their sines."""
    points = settings.fft_length
    samples = torch.arange(settings.frame_length)[:, None]
    # The product is reduced as an integer, so that the angle is exact.
    turns = (samples * torch.arange(points // 2) % points).double() / points
    angles = 2 * math.pi * turns
    return torch.cat([angles.cos(), angles.sin()], dim=1).float()


def _mel_filters(settings: FbankSettings) -> Tensor:
    """`[K, F]`: each filter twice, for squared cosines and sines; none reaches Nyquist."""
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
    return torch.cat([filters.T, filters.T]).contiguous()


class ScoreGraph(nn.Module):
    """An AST in evaluation with the normalisation before it and the score function behind it."""

    class_tokens: Tensor
    positions: Tensor

    def __init__(self, model: AST, *, mean: float, std: float, function: ScoreFunction) -> None:
        super().__init__()
        self.mean, self.std, self.function = mean, std, function
        self.num_class_tokens = model.num_class_tokens
        self.patch_embed, self.blocks = model.patch_embed, model.blocks
        self.norm, self.head_norm, self.head = model.norm, model.head_norm, model.head
        tokens = (
            [model.cls_token] if model.dist_token is None else [model.cls_token, model.dist_token]
        )
        class_entries, entries = model.pos_embed.detach().tensor_split(
            [self.num_class_tokens], dim=1
        )
        grid = model.settings.grid(model.input_shape[1])
        class_tokens = torch.cat([token.detach() for token in tokens], dim=1) + class_entries
        self.register_buffer("class_tokens", class_tokens)
        self.register_buffer("positions", entries.transpose(1, 2).reshape(1, -1, *grid))

    def forward(self, log_mels: Tensor) -> Tensor:
        """Scores `[B, C]` of raw log-mels `[B, T, F]`; short ones get the first positions."""
        x = normalise(log_mels, self.mean, self.std)
        patches = self.patch_embed(x.transpose(1, 2).unsqueeze(1))
        patches = patches + self.positions[:, :, :, : patches.shape[3]]
        class_tokens = self.class_tokens.expand(log_mels.shape[0], -1, -1)
        tokens = torch.cat([class_tokens, patches.flatten(2).transpose(1, 2)], dim=1)
        class_tokens = self.norm(self.blocks(tokens)[:, : self.num_class_tokens])
        logits = self.head(self.head_norm(class_tokens.mean(dim=1)))
        return scores(logits, self.function)
