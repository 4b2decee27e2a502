"""The metrics equal scikit-learn's, ties included, and are never NaN."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import ArrayLike
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.scores.metrics import Metrics, d_prime, evaluate_scores, top1_accuracy

SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 5))


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Targets with scores that tie often (few distinct values) or seldom."""
    shape = draw(SHAPES)
    targets = draw(npst.arrays(np.bool_, shape))
    num_values = draw(st.sampled_from([1, 2, 3, 1000]))
    values = draw(npst.arrays(np.int64, shape, elements=st.integers(0, num_values - 1)))
    return targets, (values / 7).astype(draw(st.sampled_from([np.float32, np.float64])))


def evaluate(targets: ArrayLike, scores: ArrayLike) -> Metrics:
    num_classes = np.asarray(targets).shape[1]
    return evaluate_scores(targets, scores, [f"class {i}" for i in range(num_classes)])


@given(predictions())
def test_each_class_equals_scikit_learn(both: tuple[np.ndarray, np.ndarray]) -> None:
    targets, scores = both
    for index, ours in enumerate(evaluate(targets, scores).per_class):
        target, score = targets[:, index], scores[:, index]
        assert ours.num_positives == target.sum()
        assert (ours.AP is None) == (not target.any())
        assert (ours.AUC is None) == (target.all() or not target.any())
        if ours.AP is not None:
            assert pytest.approx(average_precision_score(target, score), abs=1e-6) == ours.AP
        if ours.AUC is not None:
            assert pytest.approx(roc_auc_score(target, score), abs=1e-6) == ours.AUC


@given(predictions())
def test_means_cover_only_classes_with_a_value(both: tuple[np.ndarray, np.ndarray]) -> None:
    targets, scores = both
    metrics = evaluate(targets, scores)
    for mean, values in (
        (metrics.mAP, [entry.AP for entry in metrics.per_class if entry.AP is not None]),
        (metrics.mAUC, [entry.AUC for entry in metrics.per_class if entry.AUC is not None]),
        (metrics.chance_mAP, [share for share in targets.mean(axis=0) if share > 0]),
    ):
        assert mean == (pytest.approx(np.mean(values)) if values else None)
    assert metrics.num_classes_left_out == (targets.sum(axis=0) == 0).sum()
    assert metrics.num_clips == len(targets)


@given(predictions())
def test_json_has_neither_nan_nor_infinity(both: tuple[np.ndarray, np.ndarray]) -> None:
    metrics = evaluate(*both).to_json()
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_json_has_the_documented_keys() -> None:
    metrics = evaluate([[1, 0], [0, 1]], [[0.9, 0.1], [0.2, 0.8]]).to_json()
    assert list(metrics) == [
        "num_clips",
        "mAP",
        "mAUC",
        "d_prime",
        "accuracy",
        "chance_mAP",
        "num_classes_left_out",
        "per_class",
    ]
    assert list(metrics["per_class"][0]) == ["label", "num_positives", "AP", "AUC", "d_prime"]


def test_audioset_sized_scores_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    targets = rng.random((2000, 20)) < 0.01
    targets[:, 0] = np.arange(2000) == 7  # a single positive
    scores = rng.normal(size=targets.shape) + targets
    scores[:, 1] = np.round(scores[:, 1])  # heavy ties
    metrics = evaluate(targets, scores.astype(np.float32))
    assert metrics.mAP == pytest.approx(average_precision_score(targets, scores), abs=1e-6)
    assert metrics.mAUC == pytest.approx(roc_auc_score(targets, scores), abs=1e-6)


def test_equal_scores_rank_at_chance() -> None:
    targets = np.zeros((10, 1), dtype=int)
    targets[:3] = 1
    metrics = evaluate(targets, np.full((10, 1), 0.5))
    assert metrics.mAP == metrics.chance_mAP == pytest.approx(0.3)
    assert metrics.mAUC == 0.5
    assert metrics.d_prime == 0.0


def test_average_precision_equals_a_known_value() -> None:
    # Ranked: positive, negative, positive: precision 1 at half the recall, then 2/3.
    metrics = evaluate([[1], [0], [1]], [[0.9], [0.8], [0.1]])
    assert metrics.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.mAUC == pytest.approx(0.5)


@given(st.floats(0.001, 0.999))
def test_d_prime_equals_its_definition(auc: float) -> None:
    assert d_prime(auc) == pytest.approx(math.sqrt(2) * norm.ppf(auc), abs=1e-9)


def test_d_prime_matches_the_published_auc() -> None:
    assert d_prime(0.9736) == pytest.approx(2.7387, abs=1e-3)


@pytest.mark.parametrize("auc", [None, 0.0, 1.0])
def test_infinite_d_prime_is_none(auc: float | None) -> None:
    assert d_prime(auc) is None


def test_d_prime_is_computed_from_the_mean_auc() -> None:
    targets = [[1, 1], [0, 0], [1, 0], [0, 0]]
    scores = [[0.9, 0.2], [0.3, 0.4], [0.2, 0.1], [0.1, 0.0]]
    metrics = evaluate(targets, scores)
    assert [entry.AUC for entry in metrics.per_class] == [0.75, pytest.approx(2 / 3)]
    assert metrics.d_prime == d_prime(metrics.mAUC)


def test_perfect_class_counts_in_the_means_but_has_no_d_prime() -> None:
    metrics = evaluate([[1, 1], [0, 0], [0, 1]], [[0.9, 0.2], [0.1, 0.4], [0.2, 0.5]])
    assert metrics.per_class[0].AUC == 1.0
    assert metrics.per_class[0].d_prime is None
    assert metrics.mAUC == pytest.approx(0.75)
    assert metrics.d_prime == pytest.approx(d_prime(0.75))


def test_class_without_negatives_counts_in_map_alone() -> None:
    metrics = evaluate([[1, 1], [1, 0]], [[0.1, 0.2], [0.2, 0.1]])
    assert (metrics.per_class[0].AP, metrics.per_class[0].AUC) == (1.0, None)
    assert metrics.num_classes_left_out == 0
    assert metrics.mAUC == 1.0


def test_no_class_with_a_positive_leaves_the_means_undefined() -> None:
    metrics = evaluate(np.zeros((3, 2)), np.random.default_rng(0).random((3, 2)))
    assert (metrics.mAP, metrics.mAUC, metrics.d_prime, metrics.chance_mAP) == (None,) * 4
    assert metrics.num_classes_left_out == 2
    assert metrics.is_unlabelled


def test_without_any_label_there_is_no_accuracy() -> None:
    metrics = evaluate(np.zeros((3, 2)), np.random.default_rng(0).random((3, 2)))
    assert metrics.accuracy is None
    assert metrics.to_json()["accuracy"] is None
    assert not evaluate([[1, 0], [0, 0]], [[0.1, 0.2], [0.2, 0.1]]).is_unlabelled


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.integers(0, 2**32 - 1))
def test_accuracy_counts_correct_single_labels(labels: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).random((len(labels), 4))
    expected = np.mean(scores.argmax(axis=1) == labels)
    assert top1_accuracy(np.eye(4)[labels], scores) == pytest.approx(expected)


def test_accuracy_accepts_any_of_several_labels() -> None:
    assert top1_accuracy([[1, 1, 0], [0, 0, 1]], [[0.1, 0.9, 0.2], [0.7, 0.1, 0.6]]) == 0.5


def test_nan_score_names_its_class() -> None:
    scores = np.zeros((2, 3))
    scores[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN .*\b1 .*'siren'"):
        evaluate_scores(np.eye(2, 3), scores, ["dog", "rain", "siren"])


@pytest.mark.parametrize(
    ("targets", "scores", "labels", "pattern"),
    [
        (np.zeros((0, 2)), np.zeros((0, 2)), ["a", "b"], r"^targets: .*\(0, 2\)"),
        (np.zeros(2), np.zeros(2), ["a", "b"], r"^targets: .*\(2,\)"),
        (np.zeros((2, 2)), np.zeros((2, 3)), ["a", "b"], r"^scores: .*\(2, 2\).*\(2, 3\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), ["a"], "^labels: .*2.*got 1"),
        (np.full((2, 2), 0.5), np.zeros((2, 2)), ["a", "b"], "^targets: .*0 or 1"),
    ],
)
def test_mismatched_inputs_are_refused(
    targets: np.ndarray, scores: np.ndarray, labels: list[str], pattern: str
) -> None:
    with pytest.raises(ValueError, match=pattern):
        evaluate_scores(targets, scores, labels)
