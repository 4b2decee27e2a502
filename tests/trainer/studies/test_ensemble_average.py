"""Means of scores, logits and ranks, against SciPy and the models' own logits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, log_softmax, softmax
from scipy.stats import rankdata

from tests.support.members import NUM_CLIPS, TARGETS, make_member
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import Predictions, Source
from trainer.studies.ensemble.average import (
    average_predictions,
    to_values,
    warn_of_saturation,
)
from trainer.studies.ensemble.settings import Average

COUNTS = {"a": 3, "b": 0, "c": 1}
SHARES = (0.75, 0.0, 0.25)


def make_logits(seed: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, TARGETS.shape)


def of_logits(logits: np.ndarray, function: str = "sigmoid") -> Predictions:
    scores = expit(logits) if function == "sigmoid" else softmax(logits, axis=1)
    loss = "bce" if function == "sigmoid" else "ce"
    source = Source(loss=loss, scores=function)
    return replace(make_member(0), scores=scores.astype(np.float32), source=source)


def test_mean_of_scores_is_weighted_by_counts() -> None:
    members = {name: make_member(seed) for seed, name in enumerate(COUNTS)}
    expected = sum(
        share * member.scores.astype(np.float64)
        for share, member in zip(SHARES, members.values(), strict=True)
    )
    average = average_predictions(members, counts=COUNTS)
    np.testing.assert_allclose(average.scores, expected, atol=1e-7)
    assert average.source == Source(loss="bce", scores="sigmoid", num_members=2)


def test_mean_of_sigmoid_logits_is_that_of_the_models_logits() -> None:
    logits = [make_logits(seed) for seed in range(3)]
    members = {name: of_logits(one) for name, one in zip(COUNTS, logits, strict=True)}
    average = average_predictions(members, "logits", COUNTS)
    mean = np.average(logits, axis=0, weights=SHARES)
    np.testing.assert_allclose(average.scores, expit(mean), rtol=1e-5)
    assert average.source.average == "logits"


def test_mean_of_softmax_logits_is_that_of_the_models_logits() -> None:
    """Although the scores fix them up to a constant for each clip."""
    logits = [make_logits(seed) + 5 * seed for seed in range(3)]
    members = {name: of_logits(one, "softmax") for name, one in zip(COUNTS, logits, strict=True)}
    average = average_predictions(members, "logits", COUNTS)
    mean = np.average(logits, axis=0, weights=SHARES)
    np.testing.assert_allclose(average.scores, softmax(mean, axis=1), rtol=1e-5)
    np.testing.assert_allclose(
        to_values(members["a"], "logits"), log_softmax(logits[0], axis=1), atol=1e-4
    )


def test_mean_of_ranks_is_scipys() -> None:
    members = {name: make_member(seed) for seed, name in enumerate(COUNTS)}
    # Ties share their mean rank.
    tied = np.round(members["a"].scores, 1)
    members["a"] = replace(members["a"], scores=tied)
    ranks = [rankdata(member.scores, axis=0) / NUM_CLIPS for member in members.values()]
    average = average_predictions(members, "ranks", COUNTS)
    np.testing.assert_allclose(average.scores, np.average(ranks, axis=0, weights=SHARES), rtol=1e-6)
    assert average.scores.max() <= 1
    assert average.source.average == "ranks"


@pytest.mark.parametrize("average", ["scores", "logits", "ranks"])
def test_a_single_member_ranks_the_clips_of_a_class_as_before(average: Average) -> None:
    member = make_member(1)
    alone = average_predictions({"a": member}, average, {"a": 4})
    scored = [evaluate_scores(TARGETS, one.scores, one.labels) for one in (member, alone)]
    assert scored[0].mAP == scored[1].mAP
    assert scored[0].mAUC == scored[1].mAUC


@given(st.permutations(["a", "b", "c"]), st.sampled_from(["scores", "logits", "ranks"]))
def test_order_of_members_changes_nothing(names: list[str], average: Average) -> None:
    members = {name: make_member(seed) for seed, name in enumerate("abc")}
    shuffled = {name: members[name] for name in names}
    counts = {"a": 3, "b": 1, "c": 2}
    one, other = (average_predictions(each, average, counts) for each in (members, shuffled))
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-7)


def test_saturated_scores_keep_their_place(caplog: pytest.LogCaptureFixture) -> None:
    """Float32 rounds a sigmoid above 17.3 to 1, and below about -104 to 0."""
    logits = np.zeros_like(TARGETS, dtype=np.float64)
    logits[:4, 0] = (-200, -100, 16, 200)
    member = of_logits(logits)
    assert (member.scores[[0, 3], 0] == (0, 1)).all()
    values = to_values(member, "logits")[:4, 0]
    assert np.isfinite(values).all()
    assert (np.diff(values) > 0).all()
    warn_of_saturation({"good": make_member(1), "seed-1": member})
    (message,) = caplog.messages
    assert "seed-1" in message
    assert f"2 of {TARGETS.size}" in message
    assert "17.3" in message
    average = average_predictions({"a": member, "b": make_member(1)}, "logits")
    assert np.isfinite(average.scores).all()


def test_softmax_of_one_is_not_saturated(caplog: pytest.LogCaptureFixture) -> None:
    """Its logarithm is 0, which is exact; that of a 0 is lost."""
    logits = np.zeros_like(TARGETS, dtype=np.float64)
    logits[0, 0], logits[1, 0] = 50, 500
    warn_of_saturation({"a": of_logits(logits, "softmax")})
    (message,) = caplog.messages
    assert f"2 of {TARGETS.size}" in message
