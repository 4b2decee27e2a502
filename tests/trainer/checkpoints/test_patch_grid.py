"""Patches along an axis: those of a convolution, and the shortest axis that has as many."""

from hypothesis import given
from hypothesis import strategies as st
from torch import nn, zeros

from trainer.checkpoints.patch_grid import patches_along, shortest_axis


@given(st.data())
def test_number_of_patches_equals_a_convolutions(data: st.DataObject) -> None:
    patch = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, patch))
    size = data.draw(st.integers(patch, 100))
    num_patches = patches_along(size, patch, stride)
    assert num_patches == nn.Conv1d(1, 1, patch, stride)(zeros(1, 1, size)).shape[2]
    shortest = shortest_axis(num_patches, patch, stride)
    assert shortest <= size
    assert patches_along(shortest, patch, stride) == num_patches
    assert patches_along(shortest - 1, patch, stride) == num_patches - 1
