"""Predictions of a run on a clip set: a Parquet table of scores, and their metrics as JSON."""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import UserError
from trainer.data.clips import ClipSet
from trainer.scores.metrics import Metrics, evaluate_scores

_METADATA_KEY = b"ast_ray"
_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("scores", pa.list_(pa.float32()), nullable=False),
        pa.field("common", pa.bool_(), nullable=False),
    ]
)
_PREDICTED = pa.field("predicted", pa.string(), nullable=False)
"""The class of the highest score, for readers of the table; the metadata names all classes."""
_REMEDY = "write it again with `evaluate`"
_MAX_SCORE = 1 + 1e-5
"""Rounding may add to a softmax."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """How scores were computed; a field that does not apply is None."""

    loss: str
    """`bce` or `ce`."""
    scores: str | None = None
    """`sigmoid` or `softmax` outputs; None: written by an older version, by the loss."""
    precision: str | None = None
    """Precision that the model computed in."""
    checkpoint_step: storage.Count | None = None
    """Steps that the weights were trained for."""
    epoch: storage.Count | None = None
    """Epoch of the `best` weights."""
    weights: str | None = None
    """Which weights of a run; None: the last."""
    num_members: storage.Count | None = None
    """Members of an ensemble that count."""
    average: str | None = None
    """What of its members an ensemble averages, `logits` or `ranks`; None: the scores."""
    data_fingerprint: str | None = None
    """Fingerprint of the data set."""

    @property
    def score_function(self) -> str:
        """`sigmoid` or `softmax`."""
        return self.scores or ("sigmoid" if self.loss == "bce" else "softmax")

    def to_json(self) -> dict[str, Any]:
        """The fields that apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredClips:
    """The metrics of predictions, as in `predictions/NAME.json`."""

    name: str
    source: Source
    metrics: Metrics
    common: Metrics | None
    """On the clips that are also in the subset that others scored; None without any."""


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
    """Which clips are also in the subset that others scored, `[N]`."""
    source: Source


def from_scores(
    clips: ClipSet,
    targets: NDArray[np.float32],
    scores: NDArray[np.float32],
    source: Source,
    name: str,
) -> Predictions:
    """Predictions on a clip set."""
    return Predictions(
        name=name,
        ids=list(clips.ids),
        labels=clips.labels,
        targets=targets,
        scores=scores,
        common=clips.common,
        source=replace(source, data_fingerprint=clips.data_fingerprint),
    )


def predictions_name(clips_name: str, weights: str) -> str:
    """Name of the predictions by some weights of a run; by the last ones, just the clip set's."""
    return clips_name if weights == "last" else f"{clips_name}-{weights}"


def predictions_path(run_path: str, name: str) -> str:
    """Path of a run's predictions on a clip set."""
    return storage.join(run_path, "predictions", f"{name}.parquet")


def metrics_path(run_path: str, name: str) -> str:
    """Path of their metrics."""
    return storage.join(run_path, "predictions", f"{name}.json")


def read_metrics(run_path: str, name: str) -> ScoredClips:
    """The metrics of a run's predictions, as `write_predictions` wrote them.

    Raises:
        UserError: they are missing or damaged.
    """
    path = metrics_path(run_path, name)
    try:
        data = storage.read_bytes(path)
        rest = storage.parse_document(data, _Rest)
        metrics = storage.parse_document(data, Metrics)
        _check_name(rest.name, name)
        for scores in filter(None, (metrics, rest.common)):
            if wrong := scores.wrong_mean():
                raise storage.DocumentError(f"{wrong} is not the mean over its classes")
        return ScoredClips(
            name=rest.name,
            source=storage.parse_document(data, Source),
            metrics=metrics,
            common=rest.common,
        )
    except FileNotFoundError as error:
        raise UserError(path, "no such file", _REMEDY) from error
    except storage.DocumentError as error:
        raise UserError(path, f"damaged: {error}", _REMEDY) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rest:
    """What `predictions/NAME.json` holds beside the keys of `Source` and `Metrics`."""

    format_version: Literal[1] = 1
    name: str
    common: Metrics | None = None


def write_predictions(run_path: str, predictions: Predictions, metrics: Metrics) -> str:
    """Write the metrics, then the table; returns the table's path.

    If clips are in the common subset, the JSON also has their metrics, under `common`.
    """
    labels = np.array(predictions.labels, dtype=object)
    table = pa.table(
        [
            predictions.ids,
            [labels[target > 0].tolist() for target in predictions.targets],
            list(predictions.scores),
            predictions.common,
            labels[predictions.scores.argmax(axis=1)].tolist(),
        ],
        schema=_SCHEMA.append(_PREDICTED),
    )
    source = {"format_version": 1, **predictions.source.to_json()}
    metadata = {"name": predictions.name, "labels": predictions.labels, **source}
    path = predictions_path(run_path, predictions.name)
    document = {"name": predictions.name, **source, **metrics.to_json()}
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
        predictions = _decode(storage.read_bytes(path))
        _check_name(predictions.name, name)
        return predictions
    except FileNotFoundError as error:
        raise UserError(
            run_path, f"no predictions on {name!r}", "make them with `evaluate`"
        ) from error
    except storage.DocumentError as error:
        raise UserError(path, f"damaged: {error}", _REMEDY) from error


def _check_name(written: str, name: str) -> None:
    """Refuse a file that was put in the place of another."""
    if written != name:
        raise storage.DocumentError(f"holds the scores on {written!r}")


def _decode(data: bytes) -> Predictions:
    table = storage.parse_table(data, _SCHEMA)
    text = (table.schema.metadata or {}).get(_METADATA_KEY, b"")
    metadata = storage.parse_document(text, _Metadata)
    labels = metadata.labels
    class_of = {label: index for index, label in enumerate(labels)}
    targets = np.zeros((table.num_rows, len(labels)), dtype=np.float32)
    for clip, names in enumerate(table["labels"].to_pylist()):
        if unknown := set(names) - set(class_of):
            raise storage.DocumentError(f"a label is outside the vocabulary: {min(unknown)!r}")
        targets[clip, [class_of[name] for name in names]] = 1.0
    if set(pc.unique(pc.list_value_length(table["scores"])).to_pylist()) - {len(labels)}:
        raise storage.DocumentError(f"a clip does not have scores for all {len(labels)} classes")
    flat = table["scores"].combine_chunks().flatten().to_numpy()
    if not ((flat >= 0) & (flat <= _MAX_SCORE)).all():
        raise storage.DocumentError("a score is no number from 0 to 1")
    if pc.count_distinct(table["id"]).as_py() != table.num_rows:
        raise storage.DocumentError("a clip is in it twice")
    return Predictions(
        name=metadata.name,
        ids=table["id"].to_pylist(),
        labels=labels,
        targets=targets,
        scores=flat.reshape(table.num_rows, len(labels)),
        common=table["common"].to_numpy(),
        source=storage.parse_document(text, Source),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metadata:
    """What the table's schema metadata holds beside the keys of `Source`."""

    format_version: Literal[1] = 1
    name: str
    labels: list[str]
