"""Windows from a stream equal those of the whole recording."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.tagging.windows import WindowPlan, cut_windows


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    length = draw(st.integers(1, 30))
    return WindowPlan(
        length=length,
        hop=draw(st.integers(1, 40)),
        longest_single=length + draw(st.integers(0, 5)),
    )


@given(plan=plans(), num_samples=st.integers(0, 200))
def test_windows_reach_from_the_start_to_the_end(plan: WindowPlan, num_samples: int) -> None:
    starts = plan.starts(num_samples)
    if not num_samples:
        assert not starts
        return
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    if num_samples <= plan.longest_single:
        assert starts == [0]
        return
    assert starts[-1] + plan.length == num_samples
    steps = np.diff(starts)
    assert (steps[:-1] == plan.hop).all()
    assert (steps <= plan.hop).all()


@given(plan=plans(), sizes=st.lists(st.integers(0, 60), max_size=8))
def test_stream_gives_the_windows_of_the_whole(plan: WindowPlan, sizes: list[int]) -> None:
    whole = np.arange(sum(sizes), dtype=np.float32)
    blocks = np.split(whole, np.cumsum(sizes)[:-1]) if sizes else []
    windows = list(cut_windows(blocks, plan))
    assert [window.start for window in windows] == plan.starts(len(whole))
    for window in windows:
        np.testing.assert_array_equal(window.samples, whole[window.start : window.end])
        is_single = len(whole) <= plan.longest_single
        assert window.end - window.start == (len(whole) if is_single else plan.length)


def test_memory_does_not_grow_with_the_recording() -> None:
    plan = WindowPlan(length=1_000, hop=500, longest_single=1_000)
    sizes = [
        0 if window.samples.base is None else len(window.samples.base)
        for window in cut_windows((np.zeros(700, np.float32) for _ in range(2_000)), plan)
    ]
    assert max(sizes) <= 2_400


def test_seconds_of_a_hop_longer_than_the_window() -> None:
    plan = WindowPlan(length=10, hop=25, longest_single=10)
    assert plan.starts(60) == [0, 25, 50]
    assert plan.starts(70) == [0, 25, 50, 60]
