"""One batch, from the loader to the step of the optimiser.

B clips of this rank, P mixup partners, T frames, F mels, S samples, C classes.
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
    """This rank's slice of a global batch, at one of three stages.

    1. From the loader: everything is on the CPU, pinned for a GPU to copy. `x` has the clips as
       they are stored, in memory that lasts until the next batch is asked for.
    2. After `to_device`: `x`, `lengths`, `targets`, `clip_weights` and `noise` are on the device,
       or still being copied there. `indices` and `draws` stay on the CPU.
    3. After `with_input`: `x` is the model's input, on the device, fully augmented. A step takes
       this.
    """

    x: Tensor
    """Stages 1 and 2: the clips, then the partners of those that are mixed, padded with zeros: raw
    log-mel `[B + P, T, F]` float16, or stored audio `[B + P, S]` int16. Stage 3: the model's input,
    `[B, T, F]` float32."""
    lengths: Tensor
    """Frames, or samples, of each clip and partner without the padding, `[B + P]` int64."""
    num_frames: int
    """T, or the frames of S samples."""
    audio_fbank: FbankSettings | None
    """How fbanks are computed from audio; None if fbanks are stored."""
    targets: Tensor
    """`[B, C]` float32, mixed."""
    clip_weights: Tensor
    """`[B]`: 1, or 0 for clips that only fill up this rank's slice."""
    num_clips: int
    """Clips in the global batch, over all ranks."""
    indices: IntArray
    """Of the clips in their clip set, `[B]`."""
    draws: AugmentDraws | None = None
    """Augmentation still to apply, on the device; None in evaluation and at stage 3."""
    noise: Tensor | None = None
    """From `draw_noise`; None at stage 3."""
    memory: Buffer | None = None
    """The loader's buffer that holds `x`; None at stage 3 and if `x` is not the loader's."""

    def to_device(self, device: torch.device) -> "Batch":
        """Stage 2: a copy on the device; the host does not wait for it."""
        copies = {
            name: value.to(device, non_blocking=True)
            for name in ("x", "lengths", "targets", "clip_weights", "noise")
            if (value := getattr(self, name)) is not None
        }
        if self.memory is not None:
            self.memory.mark_used()
        return replace(self, **copies)

    def with_input(self, x: Tensor) -> "Batch":
        """Stage 3: `x` replaces the raw clips, whose memory on the device is then free."""
        return replace(self, x=x, draws=None, noise=None, memory=None)
