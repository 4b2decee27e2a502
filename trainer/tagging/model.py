"""What scores audio: a trained model, or the members of an ensemble.

In: waveforms, and models with their classes and normalisation. Steps: fbanks, rounded as they are
stored for training; padded with zeros as in evaluation; each member's scores; their mean. Out:
scores, and on request embeddings. `load` makes it from what lies in a folder or file.

B windows, N samples, T frames, F mels, C classes, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.audio.stored_audio import FULL_SCALE
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from pipeline.shards.settings import Store
from trainer.data.augment import normalise, raw_log_mel
from trainer.model.ast import AST
from trainer.model.precision import autocast
from trainer.model.settings import Precision
from trainer.optim.loss import scores
from trainer.optim.settings import ScoreFunction
from trainer.tagging.gpu_faults import naming_gpu_faults
from trainer.tagging.windows import Samples

Values = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """A model, and how it was trained to take its input."""

    ast: AST
    """In evaluation mode, on the device."""
    mean: float
    std: float
    bucket_frames: tuple[int, ...] = ()
    """Lengths that shorter clips are padded to; empty: all to the model's input."""
    store: Store = "fbank"
    """What its data set stored, which decides what is rounded: fbanks or samples."""
    function: ScoreFunction = "sigmoid"
    precision: Precision = "float32"
    share: float = 1.0
    """Of the mean; those of all members sum to 1."""

    @property
    def num_frames(self) -> int:
        """T of its longest input."""
        return self.ast.input_shape[0]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.ast.head.weight.device


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outputs:
    """What a model says of B windows."""

    scores: Values
    """`[B, C]`, from 0 to 1."""
    embeddings: Values | None
    """`[B, D]`, if asked for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Tagger:
    """A model or an ensemble that scores audio.

    All members have the same classes, mel bins and score function.
    """

    source: str
    """Path that it was loaded from."""
    labels: list[str]
    fbank: FbankSettings
    members: tuple[Member, ...]
    averages_logits: bool = False
    """Whether the mean is of logits; else of scores."""
    warnings: tuple[str, ...] = ()
    """What the user should know before trusting the scores, a line each."""

    @property
    def num_frames(self) -> int:
        """Frames of the longest input."""
        return max(member.num_frames for member in self.members)

    @naming_gpu_faults()
    @torch.inference_mode()
    def score(self, waveforms: Sequence[Samples], *, with_embeddings: bool = False) -> Outputs:
        """Scores of windows.

        Args:
            waveforms: B of `[N]` samples at the rate of the fbank, each of at least one frame. What
                exceeds a model's input is cut off.
            with_embeddings: whether to return embeddings, too; only of a single model.

        Raises:
            UserError: a GPU fails, or has too little memory.
        """
        assert not (with_embeddings and len(self.members) > 1)
        total: Tensor | None = None
        stored: dict[Store, list[Tensor]] = {}
        for member in self.members:
            if member.store not in stored:
                stored[member.store] = [self._as_stored(one, member) for one in waveforms]
            logits, embeddings = _run(member, stored[member.store], self.fbank)
            values = self._to_values(logits, member.function) * member.share
            total = values if total is None else total + values
        assert total is not None
        return Outputs(
            scores=self._to_scores(total, self.members[0].function).float().cpu().numpy(),
            embeddings=embeddings.float().cpu().numpy() if with_embeddings else None,
        )

    def _as_stored(self, waveform: Samples, member: Member) -> Tensor:
        """A window as `prepare` would store it: `[T, F]` float16, or `[N]` int16."""
        if member.store == "audio":
            rounded = np.rint(np.clip(waveform, -1, 1) * FULL_SCALE)
            return torch.from_numpy(np.minimum(rounded, FULL_SCALE - 1).astype(np.int16))
        # Not several windows at once: rounding would differ.
        return fbank(torch.from_numpy(waveform).to(member.device), self.fbank).half()

    def _to_values(self, logits: Tensor, function: ScoreFunction) -> Tensor:
        """What is averaged, in float64."""
        if not self.averages_logits:
            return scores(logits, function).double()
        return logits.double() if function == "sigmoid" else logits.double().log_softmax(dim=1)

    def _to_scores(self, mean: Tensor, function: ScoreFunction) -> Tensor:
        return scores(mean, function) if self.averages_logits else mean


def _run(
    member: Member, stored: Sequence[Tensor], settings: FbankSettings
) -> tuple[Tensor, Tensor]:
    """Logits `[B, C]` and embeddings `[B, D]` of windows as they are stored."""
    audio_fbank = settings if member.store == "audio" else None
    lengths = np.array([len(one) for one in stored])
    num_frames = lengths if audio_fbank is None else settings.num_frames(lengths)
    edges = np.array([*member.bucket_frames, member.num_frames])
    padded = edges[np.searchsorted(edges, np.minimum(num_frames, member.num_frames))]
    parts = []
    order: list[int] = []
    for frames in np.unique(padded).tolist():
        indices = np.flatnonzero(padded == frames).tolist()
        size = frames if audio_fbank is None else settings.samples_for(frames)
        x = stored[0].new_zeros(len(indices), size, *stored[0].shape[1:])
        for row, index in enumerate(indices):
            kept = stored[index][:size]
            x[row, : len(kept)] = kept
        kept_lengths = torch.from_numpy(np.minimum(lengths[indices], size))
        x, kept_lengths = x.to(member.device), kept_lengths.to(member.device)
        fbanks = raw_log_mel(x, kept_lengths, None, audio_fbank)
        with autocast(x.device, member.precision):
            embeddings = member.ast.embed(normalise(fbanks, member.mean, member.std))
            parts.append((member.ast.classify(embeddings), embeddings.float()))
        order += indices
    back = torch.argsort(torch.tensor(order)).to(member.device)
    logits, embedded = (torch.cat(of_all)[back] for of_all in zip(*parts, strict=True))
    return logits, embedded
