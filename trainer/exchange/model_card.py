"""The model card of an export: `README.md`, as Hugging Face's hub shows it.

In: a trained model and the format it is written in. Out: YAML front matter with the labels and the
run's stored metrics, then text: what the model takes and gives, how to load it, how it was trained.
It shows no path but names, since whoever exports a model may publish it.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline import storage
from pipeline.terminal import units
from trainer.exchange.onnx_scores import QuantisationCost
from trainer.exchange.settings import UNKNOWN_LICENCE
from trainer.exchange.trained_model import TrainedModel
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.scores.metrics import METRICS
from trainer.scores.predictions import ScoredClips, metrics_path, predictions_name, read_metrics

CARD_NAME = "README.md"
_TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
_TASK = "audio-classification"
_METRIC_TYPES = {
    "mAP": "mean_average_precision",
    "mAUC": "roc_auc",
    "d_prime": "d_prime",
    "accuracy": "accuracy",
}
_SECTIONS_LEFT_OUT = {"loader", "published"}
"""Of a recipe: they change no model."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TransformersFormat:
    """A folder that transformers loads."""

    library: str = "transformers"


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxFormat:
    """A folder of models in ONNX."""

    library: str = "onnx"
    with_fbank: bool
    size_bytes: dict[str, int]
    """Of the models, by the names of their files."""
    cost: QuantisationCost | None
    """Of the 8-bit copy; None: not measured, or there is none."""


def model_card(
    trained: TrainedModel, output: str, shape: TransformersFormat | OnnxFormat, licence: str
) -> bytes:
    """The card, in UTF-8.

    Args:
        trained: the model.
        output: the folder it is written to, whose name the card calls it by.
        shape: what is written.
        licence: the hub's identifier of the model's licence.

    Raises:
        UserError: the run's metrics or curves are damaged.
    """
    if licence == UNKNOWN_LICENCE:
        _logger.info("%s: the card states no licence; --licence names one, such as mit", output)
    name = output.rstrip("/").rpartition("/")[2]
    scored = _stored_metrics(trained)
    data = ModelCardData(
        license=licence,
        library_name=shape.library,
        pipeline_tag=_TASK,
        tags=["audio", "audio-spectrogram-transformer", "ast-ray"],
        labels=trained.run.data.labels,
        model_name=name,
        eval_results=list(_eval_results(trained, scored)) or None,
    )
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE.parent),
        autoescape=False,  # Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = units.number
    text = environment.get_template(_TEMPLATE.name).render(
        front_matter=data.to_yaml(),
        name=name,
        trained=trained,
        shape=shape,
        licence=licence,
        data_name=_last_part(trained.run.data.path),
        metrics=_shown_metrics(scored),
        scored=scored,
        imported_from=_last_part(trained.run.imported_from or ""),
        num_epochs=len(read_history(trained.run_path).epochs),
        settings=_changed_settings(trained),
        sizes={name: units.size(size) for name, size in getattr(shape, "size_bytes", {}).items()},
    )
    return text.encode(errors="replace")


def _stored_metrics(trained: TrainedModel) -> ScoredClips | None:
    """The metrics of these weights on the clips that the run held out; None if not evaluated."""
    name = predictions_name(trained.run.data.eval_name, trained.weights)
    if not storage.exists(metrics_path(trained.run_path, name)):
        return None
    return read_metrics(trained.run_path, name)


def _eval_results(trained: TrainedModel, scored: ScoredClips | None) -> Iterator[EvalResult]:
    data = trained.run.data
    for metric in METRICS if scored else ():
        value = getattr(scored.metrics, metric) if scored else None
        if value is not None:
            yield EvalResult(
                task_type=_TASK,
                dataset_type=_last_part(data.path),
                dataset_name=_last_part(data.path),
                dataset_split=data.eval_name,
                dataset_args={"fingerprint": data.fingerprint},
                metric_type=_METRIC_TYPES[metric],
                metric_name=_display_name(metric),
                metric_value=value,
            )


def _shown_metrics(scored: ScoredClips | None) -> dict[str, str]:
    """Metrics by their names, a dash if undefined."""
    if scored is None:
        return {}
    return {
        _display_name(metric): units.number(getattr(scored.metrics, metric), 4)
        for metric in METRICS
    }


def _display_name(metric: str) -> str:
    return metric.replace("_", "-")


def _changed_settings(trained: TrainedModel) -> dict[str, dict[str, str]]:
    """Settings other than the defaults as TOML values, by section; files by their names alone."""
    given, defaults = trained.recipe.to_json(), Recipe(name="").to_json()
    given["data"] |= {"mean": trained.run.data.mean, "std": trained.run.data.std}
    given["model"]["weights_file"] = _last_part(given["model"]["weights_file"])
    changed: dict[str, dict[str, str]] = {}
    for section, keys in given.items():
        values: dict[str, Any] = {
            key: value for key, value in keys.items() if value != defaults[section][key]
        }
        if values and section not in _SECTIONS_LEFT_OUT:
            # A JSON number, string or list is the same in TOML.
            changed[section] = {
                key: json.dumps(value, ensure_ascii=False) for key, value in values.items()
            }
    return changed


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
