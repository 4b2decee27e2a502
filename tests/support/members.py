"""Predictions of members of ensembles, made in code."""

from pathlib import Path

import numpy as np

from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import Predictions, Source, write_predictions

NUM_CLIPS = 30
TARGETS = (np.arange(NUM_CLIPS * 3).reshape(NUM_CLIPS, 3) * 7 % 5 < 2).astype(np.float32)


def make_member(seed: int) -> Predictions:
    """Scores that lean to the targets, with different errors in each member."""
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-(TARGETS * 1.5 + rng.normal(0, 1, TARGETS.shape))))
    return Predictions(
        name="eval",
        ids=[f"clip-{number}" for number in range(NUM_CLIPS)],
        labels=["a", "b", "c"],
        targets=TARGETS,
        scores=scores.astype(np.float32),
        common=np.zeros(len(TARGETS), dtype=bool),
        source=Source(loss="bce", checkpoint_step=10 * seed),
    )


def write_member(folder: Path, predictions: Predictions) -> str:
    metrics = evaluate_scores(predictions.targets, predictions.scores, predictions.labels)
    write_predictions(str(folder), predictions, metrics)
    return str(folder)
