"""A trained model in ONNX.

In: a `TrainedModel`. Steps: trace its modules with dynamic numbers of clips and lengths; name what
goes in and out; join the fbank before it. Out: one graph in float32, with the labels and the
sample rate in its metadata.
"""

import importlib.util
import json
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.version import VERSION
from trainer.exchange.onnx_modules import FbankGraph, ScoreGraph
from trainer.exchange.trained_model import TrainedModel

if TYPE_CHECKING:
    from onnx import ModelProto

LOG_MEL, WAVEFORM, SCORES = "log_mel", "waveform", "scores"
"""Names of inputs and of the output."""
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18
MAX_BYTES = 2**31 - 2**24
"""Protobuf's limit on a file, less some room for all but the weights."""


def check_onnx() -> None:
    """Check that the optional packages are installed.

    Raises:
        UserError: one is missing.
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                "--format onnx", f"{name} is not installed", "pip install 'ast-ray[onnx]'"
            )


def score_graph(trained: TrainedModel) -> "ModelProto":
    """Raw log-mels `[batch, frames, F]` in, scores `[batch, C]` out.

    Raises:
        UserError: the weights are more than a file of ONNX can hold.
    """
    model, data, shape = trained.model, trained.run.data, trained.recipe.model
    if 4 * model.num_parameters() > MAX_BYTES:
        raise UserError(
            trained.run_path,
            f"has {model.num_parameters():,} weights, and a file of ONNX holds at most 2 GB",
            "export it with --format transformers",
        )
    module = ScoreGraph(
        model, mean=data.mean, std=data.std, function=trained.recipe.train.score_function
    )
    num_frames = min(shape.patch_time + shape.stride_time, shape.num_frames)
    is_fixed = shape.num_frames == shape.patch_time
    frames = None if is_fixed else (shape.patch_time, shape.num_frames)
    example = torch.zeros(2, num_frames, trained.fbank.num_mels)
    return _trace(module, example, LOG_MEL, SCORES, ("frames", frames))


def fbank_graph(trained: TrainedModel) -> "ModelProto":
    """Waveforms `[batch, samples]` in, raw log-mels `[batch, frames, F]` out, as in evaluation."""
    settings = trained.fbank
    module = FbankGraph(settings, trained.lengths)
    example = torch.zeros(2, settings.sample_rate_hz)
    samples = (settings.frame_length, None)
    return _trace(module, example, WAVEFORM, LOG_MEL, ("samples", samples))


def with_fbank(scores: "ModelProto", fbank: "ModelProto") -> "ModelProto":
    """One graph of the two: waveforms `[batch, samples]` in, scores `[batch, C]` out."""
    from onnx import compose

    # Both number their nodes from 0.
    first, second = (
        compose.add_prefix(part, prefix, rename_inputs=False, rename_outputs=False)
        for part, prefix in ((fbank, "fbank_"), (scores, "ast_"))
    )
    joined: ModelProto = compose.merge_models(first, second, io_map=[(LOG_MEL, LOG_MEL)])
    return joined


def describe(model: "ModelProto", trained: TrainedModel) -> None:
    """Put into a model's metadata what its file alone does not tell.

    `labels` is a JSON list in the order of the scores; `sample_rate_hz` is that of waveforms.
    """
    import onnx

    fields = {
        "labels": json.dumps(trained.run.data.labels, ensure_ascii=False),
        "score_function": trained.recipe.train.score_function,
        "sample_rate_hz": str(trained.fbank.sample_rate_hz),
    }
    onnx.helper.set_model_props(model, fields)
    model.producer_name, model.producer_version = "ast-ray", VERSION


def _trace(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    output_name: str,
    length: tuple[str, tuple[int, int | None] | None],
) -> "ModelProto":
    """ONNX of a module of one input, whose first two axes vary.

    Args:
        length: name of the second axis, and its least and greatest size; None: it is fixed.
    """
    name, sizes = length
    axes = {0: torch.export.Dim("batch", min=1)}
    if sizes is not None:
        axes[1] = torch.export.Dim(name, min=sizes[0], max=sizes[1])
    with warnings.catch_warnings(), torch.no_grad():
        # The exporter's own code is behind the deprecations of PyTorch and Python.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        program = torch.onnx.export(
            module.eval(),
            (example,),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=[input_name],
            output_names=[output_name],
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    return _without_sources(program.model_proto)


def _without_sources(model: "ModelProto") -> "ModelProto":
    """Drop what the exporter notes of the Python files that it traced, such as their paths."""
    graph = model.graph
    for entries in (graph.node, graph.value_info, graph.input, graph.output, graph.initializer):
        for entry in entries:
            entry.ClearField("metadata_props")
            entry.ClearField("doc_string")
    graph.ClearField("metadata_props")
    return model
