"""A run in MLflow: by `mlflow-skinny`, on the server or store that `MLFLOW_TRACKING_URI` names."""

import os
import time
from collections.abc import Sequence
from typing import Any

from trainer.run.trackers.client import PROJECT, Row, TrackedRun

_PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Seconds and retries of a request; MLflow's own would take many minutes."""
_MAX_PARAMS, _MAX_METRICS, _MAX_CHARACTERS = 100, 1000, 6000
"""In a request, and of a parameter's value."""


class MLflowClient:
    """See `Client`."""

    def open(self, run: TrackedRun, tracker_id: str) -> str:
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        self._id = tracker_id or self._create(run)
        known = self._client.get_run(self._id).data.params
        self._client.update_run(self._id, status="RUNNING")
        # MLflow keeps the first value of a parameter, and refuses others.
        params = [
            Param(name, str(value)[:_MAX_CHARACTERS])
            for name, value in run.settings.items()
            if name not in known
        ]
        for some in _batched(params, _MAX_PARAMS):
            self._client.log_batch(self._id, params=some)
        return self._id

    def _create(self, run: TrackedRun) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id if experiment else self._client.create_experiment(name)
        )
        tags = {"recipe": run.recipe, "folder": run.path}
        created = self._client.create_run(experiment_id, run_name=run.name, tags=tags)
        return str(created.info.run_id)

    def send(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now_ms, row.step)
            for row in rows
            for name, value in row.values.items()
        ]
        for some in _batched(metrics, _MAX_METRICS):
            self._client.log_batch(self._id, metrics=some)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
