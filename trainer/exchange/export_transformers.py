"""Exports a run for transformers: the step `export --format transformers`.

In: a run folder. Out: a folder that transformers loads, with the same logits, and in it
`ast.safetensors`, the same model for this program.

transformers has one LayerNorm eps for a whole model; ours has 1e-6 in the backbone and 1e-5 in the
head, like the authors'. A LayerNorm with eps e of s x equals one with e / s^2 of x, so the folder
says 1e-6, and its final norm, the one before the head's, is scaled by sqrt(0.1): the logits are the
same, and only the pooled output is smaller by that factor.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import safetensors.torch

from pipeline import storage
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from trainer.checkpoints.from_own import EXPORTED_NAME, metadata
from trainer.checkpoints.names import to_transformers_state
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.state_files import State, encode_state
from trainer.exchange.model_card import CARD_NAME, TransformersFormat, model_card
from trainer.exchange.settings import UNKNOWN_LICENCE
from trainer.exchange.trained_model import read_trained_model
from trainer.model.ast import AST
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import check_empty, read_run

_logger = logging.getLogger(__name__)


def export_transformers(
    run_path: str, output: str, weights: Weights = "last", licence: str = UNKNOWN_LICENCE
) -> None:
    """Write weights of a run for transformers, and for this program, with a model card.

    Args:
        run_path: the run.
        output: folder to write, empty or new.
        weights: which of the run's weights.
        licence: of the model, by its identifier on Hugging Face's hub.

    Raises:
        UserError: the run or these weights do not exist; transformers has no class for the model;
            the folder holds files.
    """
    read_run(run_path)
    check_empty(output)
    trained = read_trained_model(run_path, weights)
    model, recipe, data = trained.model, trained.recipe, trained.run.data
    _check_exportable(model, recipe)
    if recipe.sampler.bucket_frames:
        _logger.warning(
            "%s: trained and evaluated on clips padded to the next of %s frames; transformers "
            "pads all to %d, which changes the scores of shorter clips",
            *(run_path, list(recipe.sampler.bucket_frames), recipe.model.num_frames),
        )
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    ours = metadata(
        trained.run.settings["model"],
        num_mels=trained.fbank.num_mels,
        labels=data.labels,
        mean=data.mean,
        std=data.std,
        loss=recipe.train.loss,
        scores=recipe.train.scores,
    )
    theirs = to_transformers_state(_with_one_eps(model, state))
    card = model_card(trained, storage.absolute(output), TransformersFormat(), licence)
    storage.make_folder(output)
    storage.write_bytes(storage.join(output, EXPORTED_NAME), encode_state(state, ours))
    plain = safetensors.torch.save(theirs, {"format": "pt"})
    storage.write_bytes(storage.join(output, "model.safetensors"), plain)
    features = _feature_extractor(recipe, trained.fbank, data.mean, data.std)
    storage.write_json(storage.join(output, "preprocessor_config.json"), features)
    config = _config(model, recipe, data.labels, trained.fbank.num_mels)
    storage.write_json(storage.join(output, "config.json"), config)
    storage.write_bytes(storage.join(output, CARD_NAME), card)


def _check_exportable(model: AST, recipe: Recipe) -> None:
    shape = recipe.model
    if model.dist_token is None or shape.patch_frequency != shape.patch_time:
        raise UserError(
            "",
            "transformers has no class for this model: it needs two class tokens (a distilled "
            f"backbone) and square patches, got {shape.backbone} and "
            f"{shape.patch_frequency} x {shape.patch_time}",
            "export it with --format onnx",
        )


def _with_one_eps(model: AST, state: State) -> State:
    scale = math.sqrt(_eps(model) / model.head_norm.eps)
    return {
        name: value * scale if name.startswith("norm.") else value for name, value in state.items()
    }


def _eps(model: AST) -> float:
    norm: Any = model.norm
    return float(norm.eps)


def _config(model: AST, recipe: Recipe, labels: Sequence[str], num_mels: int) -> dict[str, Any]:
    """`config.json` of an `ASTForAudioClassification`."""
    shape = recipe.model
    block: Any = model.blocks[0]
    kinds = {"bce": "multi_label_classification", "ce": "single_label_classification"}
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": model.head.in_features,
        "num_hidden_layers": len(model.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": _eps(model),
        "qkv_bias": True,
        "patch_size": shape.patch_time,
        "frequency_stride": shape.stride_frequency,
        "time_stride": shape.stride_time,
        "max_length": shape.num_frames,
        "num_mel_bins": num_mels,
        "problem_type": kinds[recipe.train.loss],
        "id2label": {str(row): label for row, label in enumerate(labels)},
        "label2id": {label: row for row, label in enumerate(labels)},
    }


def _feature_extractor(
    recipe: Recipe, fbank: FbankSettings, mean: float, std: float
) -> dict[str, Any]:
    """`preprocessor_config.json`: the same fbanks, which transformers computes with torchaudio."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": fbank.sample_rate_hz,
        "num_mel_bins": fbank.num_mels,
        "max_length": recipe.model.num_frames,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": True,
        "mean": mean,
        "std": std,
        "return_attention_mask": False,
    }
