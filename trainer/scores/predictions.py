"""Predictions of a run on a clip set: a Parquet table of scores, and their metrics as JSON."""

import json
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import UserError
from trainer.data.clips import ClipSet
from trainer.scores.metrics import Metrics, evaluate_scores

_METADATA_KEY = b"ast_ray"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Predictions:
    """Scores of one model, or of an ensemble, on N clips."""

    name: str
    """Name of the clip set."""
    ids: list[str]
    labels: list[str]
    """The vocabulary, `[C]`."""
    targets: NDArray[np.float32]
    """`[N, C]`."""
    scores: NDArray[np.float32]
    """`[N, C]`."""
    common: NDArray[np.bool_]
    """Clips that are also in the subset others scored, `[N]`."""
    facts: dict[str, Any]
    """Where they come from: loss, data fingerprint, checkpoint step."""


def from_scores(
    clips: ClipSet,
    targets: NDArray[np.float32],
    scores: NDArray[np.float32],
    facts: dict[str, Any],
) -> Predictions:
    """Predictions on a clip set."""
    return Predictions(
        name=clips.name,
        ids=clips.ids,
        labels=clips.labels,
        targets=targets,
        scores=scores,
        common=clips.common,
        facts={**facts, "data_fingerprint": clips.data_fingerprint},
    )


def predictions_name(clips_name: str, weights: str) -> str:
    """What predictions by a run's weights are called: the last ones' have the clip set's name."""
    return clips_name if weights == "last" else f"{clips_name}-{weights}"


def predictions_path(run_path: str, name: str) -> str:
    """Where the predictions of a run on a clip set stand."""
    return storage.join(run_path, "predictions", f"{name}.parquet")


def metrics_path(run_path: str, name: str) -> str:
    """Where their metrics stand."""
    return storage.join(run_path, "predictions", f"{name}.json")


def read_metrics(run_path: str, name: str) -> dict[str, Any]:
    """The metrics of a run's predictions, as `write_predictions` wrote them.

    Raises:
        UserError: they are not there, or damaged.
    """
    path = metrics_path(run_path, name)
    remedy = "make it again with `evaluate`"
    try:
        metrics = storage.read_json(path)
    except FileNotFoundError as error:
        raise UserError(path, "not there", remedy) from error
    except ValueError as error:
        raise UserError(path, f"damaged ({error})", remedy) from error
    needed = {field.name for field in fields(Metrics)}
    if not (isinstance(metrics, dict) and needed <= metrics.keys()):
        raise UserError(path, "damaged (metrics are missing)", remedy)
    return metrics


def write_predictions(run_path: str, predictions: Predictions, metrics: Metrics) -> str:
    """Write both files, the table last; returns its path.

    Where clips are of the common subset, the JSON has their metrics, too, under `common`.
    """
    labels = np.array(predictions.labels, dtype=object)
    table = pa.table(
        {
            "id": pa.array(predictions.ids, pa.string()),
            "labels": pa.array(
                [labels[row > 0].tolist() for row in predictions.targets], pa.list_(pa.string())
            ),
            "scores": pa.array(list(predictions.scores), pa.list_(pa.float32())),
            "common": pa.array(predictions.common),
        }
    )
    metadata = {
        "name": predictions.name,
        "labels": predictions.labels,
        **predictions.facts,
    }
    path = predictions_path(run_path, predictions.name)
    document = {"name": predictions.name, **predictions.facts, **metrics.to_json()}
    common = predictions.common
    if common.any():
        document["common"] = evaluate_scores(
            predictions.targets[common], predictions.scores[common], predictions.labels
        ).to_json()
    storage.write_json(metrics_path(run_path, predictions.name), document)
    storage.write_table(
        path, table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata).encode()})
    )
    return path


def read_predictions(run_path: str, name: str) -> Predictions:
    """Read what `write_predictions` wrote.

    Raises:
        UserError: the run has no predictions of that name, or they are damaged.
    """
    path = predictions_path(run_path, name)
    try:
        return _decode(storage.read_table(path))
    except FileNotFoundError as error:
        raise UserError(
            run_path, f"no predictions on {name!r}", "make them with `evaluate`"
        ) from error
    except (pa.ArrowInvalid, OSError, LookupError, TypeError, ValueError) as error:
        raise UserError(path, "damaged", "make it again with `evaluate`") from error


def _decode(table: pa.Table) -> Predictions:
    metadata = json.loads(table.schema.metadata[_METADATA_KEY])
    labels = metadata.pop("labels")
    class_of = {label: index for index, label in enumerate(labels)}
    targets = np.zeros((table.num_rows, len(labels)), dtype=np.float32)
    for row, names in enumerate(table["labels"].to_pylist()):
        targets[row, [class_of[one] for one in names]] = 1.0
    flat = table["scores"].combine_chunks().flatten().to_numpy()
    return Predictions(
        name=metadata.pop("name"),
        ids=table["id"].to_pylist(),
        labels=labels,
        targets=targets,
        scores=flat.reshape(table.num_rows, len(labels)),
        common=table["common"].to_numpy(),
        facts=metadata,
    )
