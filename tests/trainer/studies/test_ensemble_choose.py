"""Greedy choice of members: never worse than the best of them, in any order."""

from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tests.support.errors import refused
from tests.support.members import TARGETS, make_member
from trainer.scores.predictions import Predictions
from trainer.studies.ensemble.average import average_predictions
from trainer.studies.ensemble.choose import choose
from trainer.studies.ensemble.settings import Average, ChoiceMetric


def make_members(seeds: list[int]) -> dict[str, Predictions]:
    return {f"seed-{seed}": make_member(seed) for seed in seeds}


def mean_precision(members: dict[str, Predictions], counts: dict[str, int]) -> float:
    """By NumPy and scikit-learn."""
    used = {name: count for name, count in counts.items() if count}
    mean = np.average([members[name].scores for name in used], axis=0, weights=[*used.values()])
    return float(average_precision_score(TARGETS, mean.astype(np.float32)))


def test_choice_follows_the_greedy_path() -> None:
    """Computed here with scikit-learn, pick by pick."""
    members = make_members([1, 2, 3, 4])
    counts = dict.fromkeys(members, 0)
    path = []
    for _ in range(6):
        scores = {
            name: mean_precision(members, {**counts, name: counts[name] + 1}) for name in members
        }
        best = max(scores, key=scores.__getitem__)
        counts[best] += 1
        path.append((best, scores[best], dict(counts)))
    choice = choose(members, 6)
    assert [pick.member for pick in choice.picks] == [name for name, _, _ in path]
    assert [pick.score for pick in choice.picks] == pytest.approx([score for _, score, _ in path])
    top = max(score for _, score, _ in path)
    assert choice.counts == next(counts for _, score, counts in path if score == top)


@hypothesis_settings(max_examples=25)
@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=4, unique=True),
    st.integers(1, 5),
    st.sampled_from(["scores", "logits", "ranks"]),
    st.sampled_from(["mAP", "mAUC", "accuracy"]),
)
def test_choice_is_never_worse_than_the_best_member_in_any_order(
    seeds: list[int], num_picks: int, average: Average, metric: ChoiceMetric
) -> None:
    members = make_members(seeds)
    choice = choose(members, num_picks, metric=metric, average=average)
    assert 1 <= sum(choice.counts.values()) <= num_picks
    assert len(choice.picks) == num_picks
    alone = [
        choose({name: one}, 1, metric=metric, average=average) for name, one in members.items()
    ]
    best = max(pick.score for each in alone for pick in each.picks)
    assert max(pick.score for pick in choice.picks) >= best
    assert choice.picks[0].score == best
    shuffled = dict(reversed(members.items()))
    assert choose(shuffled, num_picks, metric=metric, average=average) == choice


def test_counts_make_the_score_of_the_best_pick() -> None:
    members = make_members([1, 2, 3])
    choice = choose(members, 8)
    average = average_predictions(members, counts=choice.counts)
    score = average_precision_score(TARGETS, average.scores)
    assert score == pytest.approx(max(pick.score for pick in choice.picks), abs=1e-9)
    # No mean of two could beat it here by much, or the choice would be useless.
    pairs = combinations_with_replacement(members, 2)
    assert score >= max(mean_precision(members, {one: 1, other: 1}) for one, other in pairs) - 0.05


def test_useless_members_are_left_out() -> None:
    """Scores that contradict the targets only harm."""
    harmful = replace(make_member(9), scores=(1 - TARGETS) * np.float32(0.5))
    choice = choose({**make_members([1, 2]), "harmful": harmful}, 6)
    assert choice.counts["harmful"] == 0
    assert choice.counts["seed-1"] > 0


def test_clips_without_labels_cannot_choose() -> None:
    unlabelled = replace(make_member(1), targets=np.zeros_like(TARGETS))
    with refused("--choose-on", "mAP", "'eval'", remedy=True):
        choose({"a": unlabelled}, 2)
