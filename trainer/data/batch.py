"""One batch, from the loader to the step of the optimiser.

B rows of this rank, P partners of mixup, T frames, F mels, S samples, C classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.fbank_settings import FbankSettings
from trainer.data.augment_draws import AugmentDraws
from trainer.data.random_streams import IntArray
from trainer.data.transfer import Buffer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Batch:
    """This rank's rows of a global batch, at one of three stages.

    1. From the loader: everything is on the CPU, where a GPU can copy it from while the host goes
       on. `x` has the clips as they are stored, in memory that lasts until the next batch is asked
       for.
    2. After `to_device`: `x`, `lengths`, `targets`, `weights` and `noise` are on the device. The
       copies may still be under way. `rows` and `draws` stay on the CPU.
    3. After `with_input`: `x` is the model's input, on the device, with nothing left to apply. This
       is what a step takes.
    """

    x: Tensor
    """Stages 1 and 2: the clips, then the partners of those that are mixed, padded with zeros: raw
    log-mel `[B + P, T, F]` float16, or samples `[B + P, S]` int16 of a data set of audio. Stage 3:
    the model's input, `[B, T, F]` float32."""
    lengths: Tensor
    """Frames, or samples, of each clip and partner without the padding, `[B + P]` int64."""
    num_frames: int
    """T, or what S samples give."""
    audio_fbank: FbankSettings | None
    """How fbanks are computed of audio; None where they are stored."""
    targets: Tensor
    """`[B, C]` float32, mixed."""
    weights: Tensor
    """`[B]`: 1, or 0 for rows that only fill up this rank's part."""
    num_clips: int
    """Clips in the global batch, over all ranks."""
    rows: IntArray
    """Which clips of the set these are, `[B]`."""
    draws: AugmentDraws | None = None
    """What remains to be applied on the device; None in evaluation and at stage 3."""
    noise: Tensor | None = None
    """As `draw_noise` gives it; None at stage 3."""
    memory: Buffer | None = None
    """The loader's memory that `x` is in; None at stage 3, and if it comes from elsewhere."""

    def to_device(self, device: torch.device) -> "Batch":
        """Stage 2: a copy there; the host does not wait for a GPU to have it."""
        copies = {
            name: value.to(device, non_blocking=True)
            for name in ("x", "lengths", "targets", "weights", "noise")
            if (value := getattr(self, name)) is not None
        }
        if self.memory is not None:
            self.memory.mark_used()
        return replace(self, **copies)

    def with_input(self, x: Tensor) -> "Batch":
        """Stage 3, without what `x` was made of, so that the device has that memory free."""
        return replace(self, x=x, draws=None, noise=None, memory=None)
