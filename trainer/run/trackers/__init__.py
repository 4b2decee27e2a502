"""Experiment trackers of others beside TensorBoard: MLflow and W&B, through their own clients.

In: the progress that a run's checkpoints hold. Out: the same curves in the tracker, once each.
"""
