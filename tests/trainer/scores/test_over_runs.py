"""Mean and deviation over runs, some of which may lack the score."""

import math

import pytest

from trainer.scores.over_runs import mean_and_deviation


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (None, None)),
        ([None], (None, None)),
        ([0.5, None], (None, None)),
        ([0.5], (0.5, None)),
        ([0.0], (0.0, None)),
        ([0.25, 0.75], (0.5, math.sqrt(0.125))),
        ([0.1] * 3, (0.1, 0.0)),
    ],
)
def test_mean_and_deviation_need_every_value(
    values: list[float | None], expected: tuple[float | None, float | None]
) -> None:
    assert mean_and_deviation(values) == pytest.approx(expected)
