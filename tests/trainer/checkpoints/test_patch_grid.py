"""Patches along an axis: those of a convolution, and the shortest axis that has as many."""

from hypothesis import given
from hypothesis import strategies as st
from torch import nn, zeros

from trainer.checkpoints.patch_grid import patches_along, shortest_axis


@given(st.data())
def test_as_many_as_a_convolution_makes(data: st.DataObject) -> None:
    patch = data.draw(st.integers(1, 20))
    stride = data.draw(st.integers(1, patch))
    size = data.draw(st.integers(patch, 100))
    found = patches_along(size, patch, stride)
    assert found == nn.Conv1d(1, 1, patch, stride)(zeros(1, 1, size)).shape[2]
    shortest = shortest_axis(found, patch, stride)
    assert shortest <= size
    assert patches_along(shortest, patch, stride) == found
    assert patches_along(shortest - 1, patch, stride) == found - 1
