"""The space of a search: what is parsed, what is refused, and which values come out of it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingError, UserError
from tests.support.errors import refused
from tests.support.prepared import tiny_recipe
from trainer.studies.search.space import (
    Range,
    Values,
    default_space,
    parse_space,
    with_choice,
)

RECIPE = tiny_recipe()


def parse(text: str) -> Values | Range:
    (dimension,) = parse_space([text], RECIPE)
    return dimension


def values_of(text: str) -> tuple[Any, ...]:
    dimension = parse(text)
    assert isinstance(dimension, Values)
    return dimension.values


def test_values_have_the_types_of_the_setting() -> None:
    assert values_of("optimiser.name=adam,adamw") == ("adam", "adamw")
    assert values_of("train.batch_size=4, 8,16") == (4, 8, 16)
    assert values_of("schedule.lr=1,1e-3") == (1.0, 1e-3)
    assert values_of("schedule.decay_after_epochs=[1,2],[3],[]") == ([1, 2], [3], [])
    assert values_of('augment.crop="first",random') == ("first", "random")
    assert values_of("augment.noise=true,false") == (True, False)


def test_count_spaces_values_evenly_in_a_range() -> None:
    assert values_of("schedule.lr=log:1e-6:1e-3:4") == (1e-6, 1e-5, 1e-4, 1e-3)
    assert values_of("augment.mixup_share=uniform:0:1:5") == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert values_of("train.batch_size=log:4:64:5") == (4, 8, 16, 32, 64)
    assert len(set(values_of("schedule.lr=log:1e-6:1e-3:1000"))) == 1000, "none of them twice"


@given(st.floats(0, 1))
def test_a_range_gives_short_numbers_within_it(share: float) -> None:
    rate = parse("schedule.lr=log:1e-6:1e-3").at(share)
    assert 1e-6 <= rate <= 1e-3
    assert len(f"{rate:e}".rstrip("0").split("e")[0].rstrip("0")) <= 5, "three digits"
    assert math.log(rate / 1e-6) / math.log(1e3) == pytest.approx(share, abs=1e-2)
    mixed = parse("augment.mixup_share=uniform:0.2:0.6").at(share)
    assert mixed == pytest.approx(0.2 + 0.4 * share, abs=1e-3)
    size = parse("train.batch_size=uniform:2:5").at(share)
    assert type(size) is int
    assert size == min(2 + int(4 * share), 5), "both ends are as likely as those between"
    assert type(parse("train.batch_size=log:2:64").at(share)) is int


@given(st.integers(0, 1000))
def test_share_is_the_place_of_a_value(number: int) -> None:
    for text in ("schedule.lr=log:1e-5:1e-2", "augment.mixup_share=uniform:0:1"):
        dimension = parse(text)
        assert dimension.share(dimension.at(number / 1000)) == pytest.approx(
            number / 1000, abs=1e-2
        )


def test_narrow_range_keeps_enough_digits() -> None:
    dimension = parse("schedule.lr=log:1e-3:1.01e-3")
    assert len({dimension.at(number / 10) for number in range(11)}) == 11


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("schedule.lr", ["section.key"]),
        ("schedule.lr=", ["section.key"]),
        ("lr=1,2", ["section.key"]),
        ("schedule.lr=log:1e-5", ["log:LOW:HIGH"]),
        ("schedule.lr=lag:1e-5:1e-3", ["'lag'", "log:LOW:HIGH"]),
        ("schedule.lr=log:1:2:3:4", ["log:LOW:HIGH"]),
        ("schedule.lr=log:1e-3:1e-5", ["0.001", "1e-05"]),
        ("augment.mixup_share=log:0:1", ["above 0"]),
        ("schedule.lr=log:1e-5:1e-3:1", ["COUNT", "1"]),
        ("schedule.lr=log:1e-5:1e-3:many", ["COUNT", "many"]),
        ("train.batch_size=uniform:1:3:9", ["6 of 9", "COUNT"]),
        ("schedule.lr=1e-3", ["--set", "schedule.lr=1e-3"]),
        ("schedule.lr=1e-3,0.001", ["0.001", "twice"]),
        ("optimiser.name=uniform:1:2", ["A,B,C"]),
        ("data.fold=1,2", ["data.fold", "clips"]),
        ("data.unused_folds=[1],[2]", ["data.unused_folds", "clips"]),
        ("loader.threads=1,2", ["loader.threads", "--set"]),
        ("train.micro_batch_size=1,2", ["train.micro_batch_size", "--set"]),
    ],
)
def test_texts_that_are_no_space_are_refused(text: str, values: list[object]) -> None:
    with refused(f"--space {text}", *values):
        parse_space([text], RECIPE)


@pytest.mark.parametrize(
    ("text", "setting", "values"),
    [
        ("schedule.rate=log:1e-5:1e-3", "schedule.rate", []),
        ("schedule.learning_rate=1,2", "schedule.learning_rate", []),
        ("train.lr=log:1e-5:1e-3", "train.lr", ["schedule.lr"]),
        ("optimizer.name=adam,adamw", "optimizer", ["optimiser"]),
        ("schedule.lr=uniform:0:1", "schedule.lr", ["0.0"]),
        ("augment.mixup_share=uniform:0:1.5", "augment.mixup_share", ["1.5"]),
        ("train.batch_size=uniform:1.5:4", "train.batch_size", ["1.5"]),
        ("schedule.lr=log:low:high", "schedule.lr", ["'low'"]),
        ("optimiser.name=adam,sgd", "optimiser.name", ["'sgd'"]),
        ("data.mean=nan,1", "data.mean", []),
    ],
)
def test_wrong_keys_types_and_ranges_are_refused_as_those_of_set(
    text: str, setting: str, values: list[object]
) -> None:
    with refused(f"--space {text}", *values, type=SettingError, setting=setting):
        parse_space([text], RECIPE)


def test_setting_is_searched_once() -> None:
    with refused("--space schedule.lr", "twice"):
        parse_space(["schedule.lr=1,2", "schedule.lr=log:1e-3:1"], RECIPE)


def test_default_is_the_learning_rate_around_that_of_the_recipe() -> None:
    (rate,) = parse_space(default_space(RECIPE), RECIPE)
    assert isinstance(rate, Range)
    assert (rate.setting, rate.low, rate.high) == ("schedule.lr", 2e-4, 2e-2)
    assert rate.at(0.5) == RECIPE.schedule.lr


def test_choice_changes_only_its_settings() -> None:
    changed = with_choice(RECIPE, {"schedule.lr": 1e-5, "optimiser.name": "adamw"}, "")
    before, after = RECIPE.to_json(), changed.to_json()
    assert after["schedule"].pop("lr") == 1e-5
    assert after["optimiser"].pop("name") == "adamw"
    del before["schedule"]["lr"], before["optimiser"]["name"]
    assert before == after


def test_choice_that_conflicts_with_another_setting_is_refused() -> None:
    with pytest.raises(UserError, match="warmup"):
        with_choice(RECIPE, {"schedule.warmup_steps": 1}, "")


def test_edges_are_near_the_ends_of_a_range() -> None:
    rate = parse("schedule.lr=log:1e-6:1e-3")
    assert [rate.is_edge(value) for value in (1.1e-6, 1e-5, 1e-4, 9e-4)] == [
        True,
        False,
        False,
        True,
    ]
    spaced = parse("schedule.lr=log:1e-6:1e-3:4")
    assert [spaced.is_edge(value) for value in (1e-6, 1e-5, 1e-3)] == [True, False, True]
    assert not parse("optimiser.name=adam,adamw").is_edge("adam")
