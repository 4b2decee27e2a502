"""How much a model computes, and the share of the device's peak that is used for it.

In: an AST, or clips a second. Steps: add up the multiplications and additions (2 FLOPs a pair) of
its matrix products, as `torch.utils.flop_counter` does; norms, softmax and GELU, about 1 % more,
are left out. Out: FLOPs of a clip, and model-FLOP utilisation (Chowdhery et al., "PaLM", 2022,
appendix B): recomputation would not count.

N patches, P class tokens, D width, C classes.
"""

import torch

from trainer.model.ast import AST

_BACKWARD = 2
"""Forward passes that a backward pass is worth: gradients of the inputs, and of the weights."""

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
"""FLOPs a second in float32 and in 16 bits, dense, from NVIDIA's data sheets, by a word or two of
the device's name; the first that fits counts."""


def forward_flops(model: AST, num_frames: int | None = None) -> int:
    """FLOPs of the forward pass of one clip; in training mode without the patches left out.

    `num_frames`: of the padded input; None: the most that the model takes.
    """
    shape = model.input_shape[1], num_frames
    num_patches = model.settings.num_patches(*shape)
    num_kept = model.settings.num_kept_patches(*shape) if model.training else num_patches
    num_tokens, width = model.num_class_tokens + num_kept, model.head.in_features
    patches = 2 * num_patches * model.patch_embed.weight.numel()
    weights = sum(one.numel() for one in model.blocks.parameters() if one.ndim == 2)
    # Of every token with every other one: the scores, and the sum of values that they weigh.
    attention = 2 * 2 * num_tokens**2 * width * len(model.blocks)
    return int(patches + 2 * num_tokens * weights + attention + 2 * model.head.weight.numel())


def training_flops(model: AST, num_frames: int | None = None) -> int:
    """FLOPs of the forward and the backward pass of one clip; see `forward_flops`."""
    return (1 + _BACKWARD) * forward_flops(model, num_frames)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOPs a second that the device can do at most; None where that is not known."""
    if device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(device), precision)


def peak_of(device_name: str, precision: str) -> float | None:
    """The same by the name that CUDA gives a device."""
    words = set(device_name.replace("-", " ").split())
    for name, (full, half) in _PEAK_FLOPS.items():
        if set(name.split()) <= words:
            return full if precision == "float32" else half
    return None
