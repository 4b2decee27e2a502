"""Every stream, epoch and position has numbers of its own, and they are uniform."""

import numpy as np
import pytest
from scipy.stats import chisquare

from trainer.data.random_streams import Stream, random_bits, uniform
from trainer.data.settings import MAX_SEED


def test_streams_epochs_and_seeds_do_not_repeat_each_other() -> None:
    places = [(s, e, p) for s in (0, 1, MAX_SEED) for e in (0, 1, 2) for p in (0, 1, 2)]
    drawn = np.stack(
        [
            uniform(random_bits(stream, seed=seed, epoch=epoch, position=position), 1000)
            for stream in Stream
            for seed, epoch, position in places
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
    ("place", "message"),
    [
        ({"seed": -1}, "seed: must be"),
        ({"seed": MAX_SEED + 1}, "seed: must be"),
        ({"seed": 0, "epoch": -1}, "epoch: must be"),
        ({"seed": 0, "position": -1}, "position: must be"),
    ],
)
def test_place_out_of_range_is_named(place: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        random_bits(Stream.ORDER, **place)
