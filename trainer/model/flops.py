"""FLOPs of a model, and the peak FLOPs of devices.

In: an AST, or a device. Steps: add up the multiplications and additions (2 FLOPs a pair) of the
matrix products, as `torch.utils.flop_counter` does; norms, softmax and GELU, about 1 % more, are
left out. Out: FLOPs per clip and peak FLOPs per second, whose ratio gives model-FLOP utilisation
(Chowdhery et al., "PaLM", 2022, appendix B), which does not count recomputation.

N patches, P class tokens, D width, C classes.
"""

import torch
from torch import nn

from trainer.model.ast import AST
from trainer.model.last_block import can_leave_out

_BACKWARD = 2
"""Forward passes that a backward pass costs: gradients of the inputs, and of the weights."""

_PEAK_FLOPS = {
    "H200": (67e12, 989e12),
    "H100 PCIe": (51e12, 756e12),
    "H100": (67e12, 989e12),
    "A100": (19.5e12, 312e12),
    "V100": (15.7e12, 125e12),
    "L40S": (91.6e12, 362e12),
    "L4": (30.3e12, 121e12),
    "A10": (31.2e12, 125e12),
    "T4": (8.1e12, 65e12),
}
"""Dense FLOPs per second in float32 and in 16 bits, from NVIDIA's data sheets, by words in the
device's name; the first match counts."""


def forward_flops(model: AST, num_frames: int | None = None) -> int:
    """FLOPs of the forward pass of one clip; in training mode, after patchout.

    `num_frames`: of the padded input; None: the model's maximum.
    """
    shape = model.input_shape[1], num_frames
    num_patches = model.settings.num_patches(*shape)
    num_kept = model.settings.num_kept_patches(*shape) if model.training else num_patches
    num_tokens, width = model.num_class_tokens + num_kept, model.head.in_features
    patches = 2 * num_patches * model.patch_embed.weight.numel()
    *others, last = model.blocks
    blocks = sum(_block_flops(block, num_tokens, num_tokens, width) for block in others)
    num_outputs = model.num_class_tokens if can_leave_out(last) else num_tokens
    blocks += _block_flops(last, num_tokens, num_outputs, width)
    return int(patches + blocks + 2 * model.head.weight.numel())


def _block_flops(block: nn.Module, num_tokens: int, num_outputs: int, width: int) -> int:
    """FLOPs of a block that computes the outputs of the first of its tokens, or of all."""
    weights = sum(weight.numel() for weight in block.parameters() if weight.ndim == 2)
    # Keys and values are of all tokens.
    shared = 2 * width**2
    # Attention of every output to every token: the scores, and the weighted sum of values.
    attention = 2 * 2 * num_outputs * num_tokens * width
    return 2 * (num_tokens * shared + num_outputs * (weights - shared)) + attention


def training_flops(model: AST, num_frames: int | None = None) -> int:
    """FLOPs of the forward and the backward pass of one clip; see `forward_flops`."""
    return (1 + _BACKWARD) * forward_flops(model, num_frames)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOPs per second of the device; None if unknown."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(device_name: str, precision: str) -> float | None:
    """Peak FLOPs per second by CUDA's name of the device; None if unknown."""
    words = set(device_name.replace("-", " ").split())
    for name, (full, half) in _PEAK_FLOPS.items():
        if set(name.split()) <= words:
            return full if precision == "float32" else half
    return None
