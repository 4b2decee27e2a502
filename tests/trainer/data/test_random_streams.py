"""Each stream, epoch and position has distinct, uniform random numbers."""

import numpy as np
import pytest
from scipy.stats import chisquare

from pipeline.errors import SettingValueError
from tests.support.errors import refused
from trainer.data.random_streams import Stream, random_bits, uniform
from trainer.data.settings import MAX_SEED


def test_streams_epochs_and_seeds_do_not_repeat_each_other() -> None:
    coordinates = [(s, e, p) for s in (0, 1, MAX_SEED) for e in (0, 1, 2) for p in (0, 1, 2)]
    drawn = np.stack(
        [
            uniform(random_bits(stream, seed=seed, epoch=epoch, position=position), 1000)
            for stream in Stream
            for seed, epoch, position in coordinates
        ]
    )
    assert len(np.unique(drawn)) == drawn.size
    correlation = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlation).max() < 0.2


def test_uniform_numbers_fill_the_unit_interval() -> None:
    drawn = uniform(random_bits(Stream.ORDER, seed=0), 20_000)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert chisquare(np.histogram(drawn, bins=20, range=(0, 1))[0]).pvalue > 0.001


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ({"seed": -1}, "seed", -1),
        ({"seed": MAX_SEED + 1}, "seed", MAX_SEED + 1),
        ({"seed": 0, "epoch": -1}, "epoch", -1),
        ({"seed": 0, "position": -1}, "position", -1),
    ],
)
def test_arguments_out_of_range_are_refused(
    arguments: dict[str, int], name: str, value: int
) -> None:
    with refused(name, f"got {value}", type=SettingValueError):
        random_bits(Stream.ORDER, **arguments)
