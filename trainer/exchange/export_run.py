"""Models into run folders and out of them: `import` and `export` of `ray_job.py`.

In: a checkpoint of a whole AST, whoever trained it. Out: a run folder as training leaves it, to
evaluate, average and report. Or in: a run folder. Out: a folder that transformers loads, which
gives the same logits, and in it `ast.safetensors`, the same model for this program.

transformers has one LayerNorm eps for a whole model; ours has 1e-6 in the backbone and 1e-5 in the
head, as the authors' has. A LayerNorm with eps e of s x is one with e / s^2 of x, so the folder
says 1e-6 and its final norm, the one before the head's, is scaled by sqrt(0.1): the logits are the
same, and only the pooled output is smaller by that factor.
"""

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import safetensors.torch

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from trainer.checkpoints.ast_checkpoint import (
    EXPORTED_NAME,
    AstCheckpoint,
    metadata,
    missing_labels,
    read_weights,
)
from trainer.checkpoints.averaging import check_weights, weights_path
from trainer.checkpoints.checkpoint import Checkpoint, Progress, load_last, save_checkpoint
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.state_files import (
    State,
    encode_state,
    load_exactly,
    read_state,
    to_transformers_state,
)
from trainer.data.clips import select_training_data
from trainer.model.ast import AST
from trainer.model.build import build_model, load_ast
from trainer.optim.optimiser import make_optimiser
from trainer.recipe.fit import check_fit
from trainer.recipe.parse import load_recipe, make_recipe
from trainer.recipe.recipe import SECTIONS, Recipe
from trainer.run.run_folder import (
    check_empty,
    check_folder,
    describe_run,
    read_recipe,
    read_run,
    write_history,
)

_logger = logging.getLogger(__name__)

_IN_EFFECT = re.compile(
    r"(data|loader|published)\..*|train\.(loss|batch_size|seed)|sampler\.bucket_frames|"
    r"augment\.(frequency|time)_mask|"
    r"model\.(?!pretrained|position_embedding|patchout|checkpoint_activations).*"
)
"""Settings that evaluation, ensembles (the seed), the report or the checks of a recipe (masks) look
at; all others are of training alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What became of a checkpoint."""

    num_classes: int
    """Classes of the run."""
    num_classes_left_out: int
    """Classes of the checkpoint that the data set does not have."""
    by_name: bool
    """Whether the classes were found by name; else their order was taken for the same."""


def import_run(
    source: str, dataset_path: str, run_path: str, recipe_path: str, overrides: Sequence[str]
) -> Imported:
    """Make a finished run of no step from a checkpoint.

    Args:
        source: see `trainer.checkpoints.ast_checkpoint.read_weights`.
        recipe_path: settings of the run; what it leaves out, the checkpoint tells; empty: all.
            Another input length or stride than the checkpoint's is fitted.
        overrides: see `trainer.recipe.parse.load_recipe`; only of what an untrained model has.

    Raises:
        UserError: there is no such checkpoint or data set; the data set has classes or a number of
            mel bins that the checkpoint has not; the folder holds a run already; an override is of
            no effect.
    """
    _check_overrides(overrides)
    check_folder(run_path, own="")
    # What an import leaves that was stopped.
    check_empty(run_path, but=frozenset({"checkpoints", "history.json"}))
    dataset = open_dataset(dataset_path)
    plain = load_recipe(recipe_path, overrides)
    checkpoint = read_weights(source, asdict(plain.model))
    if not isinstance(checkpoint, AstCheckpoint):
        raise UserError(
            source,
            "not a whole AST",
            f"if it is a backbone of timm, train with it by --set model.weights_file={source}",
        )
    rows = _rows(checkpoint, dataset)
    told = _settings_of(checkpoint)
    # First by itself, so that what is wrong with the checkpoint is said of it.
    make_recipe("imported", told, where=checkpoint.source)
    if not recipe_path:
        told["model"]["pretrained"] = False
    recipe = load_recipe(recipe_path, overrides, beneath=told)
    data = select_training_data(dataset, recipe.data)
    check_fit(recipe, data)
    if math.isnan(recipe.data.mean):
        _logger.warning(
            "%s: does not tell what its inputs were normalised with; taken from the data set: "
            "data.mean=%.4f, data.std=%.4f",
            *(source, data.mean, data.std),
        )
    model = _empty_model(recipe, dataset.labels, dataset.num_mels)
    load_ast(model, checkpoint, replace(recipe.model, position_embedding="adapt"), rows=rows)
    optimiser = make_optimiser(model.parameters(), recipe.optimiser).state_dict()
    progress = Progress(epoch=recipe.train.epochs + 1)
    state = model.state_dict()
    save_checkpoint(run_path, Checkpoint(model=state, optimiser=optimiser, progress=progress))
    write_history(run_path, progress, finished=True)
    facts = describe_run(recipe, dataset, data, model.num_parameters())
    # It was trained on none of them.
    facts = {**facts, "data": {**facts["data"], "num_train_clips": 0}, "imported_from": source}
    storage.write_json(storage.join(run_path, "run.json"), facts)
    return Imported(
        num_classes=len(rows),
        num_classes_left_out=len(checkpoint.state["head.bias"]) - len(rows),
        by_name=checkpoint.labels is not None,
    )


def export_run(run_path: str, output: str, weights: Weights = "last") -> None:
    """Write weights of a run for transformers, and for this program.

    Args:
        run_path: the run.
        output: folder to write; it must be empty, or not there.
        weights: which of those that the run has.

    Raises:
        UserError: there is no run or no such weights; a model that transformers has no class for;
            the folder holds files.
    """
    run = read_run(run_path)
    check_empty(output)
    trained = _read_weights_of(run_path, weights)
    recipe, data = read_recipe(run), run["data"]
    num_mels = data.get("num_mels", FbankSettings().num_mels)
    model = _empty_model(recipe, data["labels"], num_mels)
    load_exactly(model, trained, source=run_path)
    _check_exportable(model, recipe)
    if recipe.sampler.bucket_frames:
        _logger.warning(
            "%s: was trained and evaluated on clips padded to the next of %s frames; transformers "
            "pads all to %d, which gives shorter clips other scores",
            *(run_path, list(recipe.sampler.bucket_frames), recipe.model.num_frames),
        )
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    ours = metadata(
        run["settings"]["model"],
        num_mels=num_mels,
        labels=data["labels"],
        mean=data["mean"],
        std=data["std"],
        loss=recipe.train.loss,
    )
    theirs = to_transformers_state(_with_one_eps(model, state))
    storage.make_folder(output)
    storage.write_bytes(storage.join(output, EXPORTED_NAME), encode_state(state, ours))
    plain = safetensors.torch.save(theirs, {"format": "pt"})
    storage.write_bytes(storage.join(output, "model.safetensors"), plain)
    features = _feature_extractor(recipe, num_mels, data["mean"], data["std"])
    storage.write_json(storage.join(output, "preprocessor_config.json"), features)
    config = _config(model, recipe, data["labels"], num_mels)
    storage.write_json(storage.join(output, "config.json"), config)


def _check_overrides(overrides: Sequence[str]) -> None:
    for override in overrides:
        name = override.partition("=")[0].strip()
        section, _, key = name.partition(".")
        if name == "model.weights_file":
            raise UserError(f"--set {override}", "the checkpoint is where the weights come from")
        # An unknown one gets its message where recipes are read.
        is_known = key in getattr(SECTIONS.get(section), "__slots__", ())
        if is_known and not _IN_EFFECT.fullmatch(name):
            raise UserError(
                f"--set {override}", "has no effect on a model that is not trained", "leave it out"
            )


def _read_weights_of(run_path: str, weights: Weights) -> State:
    if weights != "last":
        check_weights(run_path, weights)
        return read_state(weights_path(run_path, weights))
    return load_last(run_path).model


def _settings_of(checkpoint: AstCheckpoint) -> dict[str, dict[str, Any]]:
    """What a checkpoint tells of a recipe."""
    settings: dict[str, dict[str, Any]] = {
        "model": dict(checkpoint.model),
        # Nothing is trained, and masks for AudioSet's length do not fit shorter inputs.
        "augment": {"frequency_mask": 0, "time_mask": 0},
    }
    if checkpoint.mean is not None and checkpoint.std is not None:
        settings["data"] = {"mean": checkpoint.mean, "std": checkpoint.std}
    if checkpoint.loss is not None:
        settings["train"] = {"loss": checkpoint.loss}
    return settings


def _rows(checkpoint: AstCheckpoint, dataset: PreparedDataset) -> list[int]:
    rows = checkpoint.head_rows(len(dataset.labels), dataset.labels)
    if rows is not None:
        return rows
    missing = missing_labels(checkpoint, dataset.labels)
    why = (
        f"{len(missing)} of the data set's {len(dataset.labels)} classes are not among its own: "
        f"{', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}"
        if missing
        else f"it has {len(checkpoint.state['head.bias'])} classes without names, the data set "
        f"{len(dataset.labels)}"
    )
    raise UserError(checkpoint.source, f"cannot score {dataset.path}: {why}")


def _empty_model(recipe: Recipe, labels: Sequence[str], num_mels: int) -> AST:
    return build_model(recipe.model.without_weights(), num_classes=len(labels), num_mels=num_mels)


def _check_exportable(model: AST, recipe: Recipe) -> None:
    shape = recipe.model
    if model.dist_token is None or shape.patch_frequency != shape.patch_time:
        raise UserError(
            "",
            "transformers has no class for this model: it must have two class tokens (a "
            f"distilled backbone) and square patches, not {shape.backbone} and "
            f"{shape.patch_frequency} x {shape.patch_time}",
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


def _feature_extractor(recipe: Recipe, num_mels: int, mean: float, std: float) -> dict[str, Any]:
    """`preprocessor_config.json`: the same fbanks, which it computes with torchaudio."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": FbankSettings().sample_rate_hz,
        "num_mel_bins": num_mels,
        "max_length": recipe.model.num_frames,
        "padding_value": 0.0,
        "padding_side": "right",
        "do_normalize": True,
        "mean": mean,
        "std": std,
        "return_attention_mask": False,
    }
