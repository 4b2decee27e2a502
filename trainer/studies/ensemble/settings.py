"""What can be asked of an ensemble, by name. Loads neither PyTorch nor Ray."""

from typing import Literal

Outputs = Literal["last", "averaged", "ema", "best", "cumulative"]
"""What of a run is a member: the model with some weights, or `cumulative`, the mean of the scores
of all its epochs."""

Average = Literal["scores", "logits", "ranks"]
"""What is averaged."""

ChoiceMetric = Literal["mAP", "mAUC", "accuracy"]
"""Metrics to choose members by."""
