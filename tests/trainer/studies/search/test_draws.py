"""The settings of each run: a function of space, seed and number."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.errors import refused
from tests.support.prepared import tiny_recipe
from trainer.studies.search.draws import draw, grid
from trainer.studies.search.plan import folder_name
from trainer.studies.search.space import Range, parse_space

RECIPE = tiny_recipe()
RATE = "schedule.lr=log:1e-6:1e-3"
SPACE = parse_space([RATE, "augment.mixup_share=uniform:0:1", "optimiser.name=adam,adamw"], RECIPE)


@given(st.integers(0, 2**63 - 1), st.integers(1, 20), st.integers(0, 20))
def test_more_draws_keep_the_first_ones(seed: int, num: int, more: int) -> None:
    first = draw(SPACE, seed=seed, num=num)
    assert draw(SPACE, seed=seed, num=num + more)[:num] == first
    assert len({repr(choice) for choice in first}) == num, "none of them twice"


def test_another_seed_gives_other_settings() -> None:
    assert draw(SPACE, seed=0, num=8) != draw(SPACE, seed=1, num=8)


@given(st.integers(0, 2**63 - 1))
def test_eight_draws_leave_no_large_gap(seed: int) -> None:
    """Independent draws would leave a quarter of the range without one in most searches."""
    (rate,) = space = parse_space([RATE], RECIPE)
    assert isinstance(rate, Range)
    places = sorted(rate.share(choice["schedule.lr"]) for choice in draw(space, seed=seed, num=8))
    assert [int(8 * min(place + 1e-4, 0.999)) for place in places] == pytest.approx(
        list(range(8)), abs=1
    )
    ends = [0.0, *places, 1.0]
    assert max(b - a for a, b in itertools.pairwise(ends)) <= 0.26


def test_values_are_drawn_alike() -> None:
    names = [choice["optimiser.name"] for choice in draw(SPACE, seed=3, num=50)]
    assert 20 <= names.count("adam") <= 30


def test_grid_has_every_combination_once() -> None:
    space = parse_space(["schedule.lr=log:1e-5:1e-3:3", "optimiser.name=adam,adamw"], RECIPE)
    assert [tuple(choice.values()) for choice in grid(space)] == [
        (1e-5, "adam"),
        (1e-5, "adamw"),
        (1e-4, "adam"),
        (1e-4, "adamw"),
        (1e-3, "adam"),
        (1e-3, "adamw"),
    ]


def test_grid_needs_values() -> None:
    with refused(f"--space {RATE}", remedy=f"{RATE}:5"):
        grid(parse_space([RATE], RECIPE))


def test_grid_that_is_too_large_is_refused() -> None:
    space = parse_space(
        ["schedule.lr=log:1e-5:1e-3:1000", "augment.mixup_share=uniform:0:1:11"], RECIPE
    )
    with refused("--strategy grid", "11,000", "10,000"):
        grid(space)


def test_more_draws_than_combinations_are_refused() -> None:
    space = parse_space(["optimiser.name=adam,adamw", "augment.noise=true,false"], RECIPE)
    assert len(draw(space, seed=0, num=4)) == 4
    with refused("--samples 5", "4", remedy="--strategy grid"):
        draw(space, seed=0, num=5)


def test_folders_are_named_by_number_and_settings() -> None:
    assert folder_name(3, {"schedule.lr": 1e-5, "optimiser.name": "adam"}) == (
        "003-lr-1e-05-name-adam"
    )
    name = folder_name(12, {"schedule.decay_after_epochs": [2, 4], "model.weights_file": "/a b/ü"})
    assert name == "012-decay_after_epochs-_2_4_-weights_file-_a_b"
    assert len(folder_name(1, {"model.weights_file": "x" * 200})) == 80
