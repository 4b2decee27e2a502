"""Patches along an axis of an input, from its size and back. Does not import PyTorch."""


def patches_along(size: int, patch: int, stride: int) -> int:
    """Patches along an axis of `size`, one every `stride`; a remainder at the end is ignored."""
    return (size - patch) // stride + 1


def shortest_axis(num_patches: int, patch: int, stride: int) -> int:
    """The smallest size of an axis with `num_patches` patches."""
    return (num_patches - 1) * stride + patch
