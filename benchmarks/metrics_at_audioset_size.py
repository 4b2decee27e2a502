"""The metrics at the size of AudioSet's evaluation, ours and scikit-learn's in one process.

In: random scores, and random targets with 2 labels per clip. Out: the seconds of each, in turns,
and the largest difference of their values; an error if it is 1e-6 or more.

    .venv/bin/python benchmarks/metrics_at_audioset_size.py
"""

import os
import time

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.scores.metrics import evaluate_scores

NUM_CLIPS, NUM_CLASSES = 20_371, 527


def main() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((NUM_CLIPS, NUM_CLASSES), dtype=np.float32)
    targets = rng.random((NUM_CLIPS, NUM_CLASSES)) < 2 / NUM_CLASSES
    labels = [str(number) for number in range(NUM_CLASSES)]
    for _ in range(3):
        start_s = time.perf_counter()
        ours = evaluate_scores(targets, scores, labels)
        middle_s = time.perf_counter()
        precisions = average_precision_score(targets, scores, average=None)
        areas = roc_auc_score(targets, scores, average=None)
        end_s = time.perf_counter()
        print(f"ours {middle_s - start_s:.2f} s, scikit-learn {end_s - middle_s:.2f} s")
    values = np.array([(metrics.AP, metrics.AUC) for metrics in ours.per_class])
    difference = np.abs(values - np.stack([precisions, areas], axis=1)).max()
    print(f"largest difference {difference:.1e}, load average {os.getloadavg()[0]:.1f}")
    assert difference < 1e-6


if __name__ == "__main__":
    main()
