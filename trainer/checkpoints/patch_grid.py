"""How many patches an input has along an axis, and the other way round. Loads without PyTorch."""


def patches_along(size: int, patch: int, stride: int) -> int:
    """Patches along an axis of `size`, one every `stride`; a rest that none fits into is unseen."""
    return (size - patch) // stride + 1


def shortest_axis(num_patches: int, patch: int, stride: int) -> int:
    """The smallest size of an axis with so many patches."""
    return (num_patches - 1) * stride + patch
