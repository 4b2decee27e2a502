"""Exports a run in ONNX: the step `export --format onnx`.

In: a run folder. Out: a folder with `model.onnx`, on request its 8-bit copy, and a model card. The
graph computes in float32, takes raw log-mels or waveforms, and gives scores.
"""

from dataclasses import dataclass

from pipeline import storage
from trainer.checkpoints.settings import Weights
from trainer.data.clips import ClipSet
from trainer.exchange.model_card import CARD_NAME, OnnxFormat, model_card
from trainer.exchange.onnx_graph import check_onnx, describe, fbank_graph, score_graph, with_fbank
from trainer.exchange.onnx_int8 import quantised
from trainer.exchange.onnx_scores import QuantisationCost, quantisation_cost
from trainer.exchange.settings import UNKNOWN_LICENCE, OnnxSettings
from trainer.exchange.trained_model import read_trained_model
from trainer.run.run_folder import check_empty, read_run

MODEL_NAME, INT8_NAME = "model.onnx", "model_int8.onnx"


@dataclass(frozen=True, kw_only=True, slots=True)
class OnnxExport:
    """What was written."""

    size_bytes: dict[str, int]
    """Of the models, by the names of their files."""
    cost: QuantisationCost | None
    """None: not measured."""


def export_onnx(
    run_path: str,
    output: str,
    weights: Weights = "last",
    settings: OnnxSettings | None = None,
    *,
    clips: ClipSet | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> OnnxExport:
    """Write weights of a run in ONNX, with a model card.

    Args:
        run_path: the run.
        output: folder to write, empty or new.
        weights: which of the run's weights.
        settings: what the model contains; None: log-mels in, and no 8-bit copy.
        clips: clips to score with the model and with its 8-bit copy; None: none.
        licence: of the model, by its identifier on Hugging Face's hub.

    Raises:
        UserError: the run or these weights do not exist, or are more than ONNX can hold; the
            folder holds files; an optional package is missing; a shard of the clips is damaged.
    """
    settings = settings or OnnxSettings()
    check_onnx()
    read_run(run_path)
    check_empty(output)
    trained = read_trained_model(run_path, weights)
    models = {MODEL_NAME: score_graph(trained)}
    cost = None
    if settings.int8:
        models[INT8_NAME] = quantised(models[MODEL_NAME])
        if clips is not None:
            cost = quantisation_cost(trained, models[MODEL_NAME], models[INT8_NAME], clips)
    if settings.with_fbank:
        fbank = fbank_graph(trained)
        models = {name: with_fbank(model, fbank) for name, model in models.items()}
    files = {}
    for name, model in models.items():
        describe(model, trained)
        files[name] = model.SerializeToString(deterministic=True)
    result = OnnxExport(
        size_bytes={name: len(data) for name, data in files.items()},
        cost=cost,
    )
    shape = OnnxFormat(with_fbank=settings.with_fbank, size_bytes=result.size_bytes, cost=cost)
    files[CARD_NAME] = model_card(trained, storage.absolute(output), shape, licence)
    storage.make_folder(output)
    for name, data in files.items():
        storage.write_bytes(storage.join(output, name), data)
    return result
