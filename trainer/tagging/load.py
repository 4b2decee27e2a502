"""A trained model from where it lies, ready to score audio.

In: a run, an ensemble's folder, a folder that `export` or transformers wrote, or a `.pth` of the
AST authors. Steps: read weights, classes and normalisation; adapt the positional embedding where a
window is longer than the model's input. Out: a `Tagger`. No prepared data set is needed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast, get_args

import torch

from pipeline.errors import UserError
from pipeline.fbank_settings import PUBLISHED_NORMS, FbankSettings
from pipeline.shards.settings import Store
from trainer.checkpoints.ast_checkpoint import AstCheckpoint
from trainer.checkpoints.read_weights import read_weights
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.trained import read_trained
from trainer.model.build import build_model, load_ast
from trainer.model.settings import ModelSettings, Precision
from trainer.optim.settings import ScoreFunction
from trainer.recipe.parse import make_recipe
from trainer.run.run_folder import is_run, read_recipe, read_run
from trainer.studies.ensemble.result import is_ensemble, read_ensemble
from trainer.tagging.gpu_faults import naming_gpu_faults
from trainer.tagging.labels import read_labels
from trainer.tagging.model import Member, Tagger


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelChoice:
    """Which model scores, and how."""

    path: str
    weights: Weights = "last"
    """Of a run."""
    labels: str | None = None
    """Path of a file with the names of its classes; None: the model names them."""
    window_s: float | None = None
    """Length of the windows that it must take; None: that of its input."""
    precision: Precision | None = None
    """None: that of its training, or float32."""
    function: ScoreFunction | None = None
    """What makes scores of its outputs; None: as in its training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trained:
    """A model that was read, before it is built."""

    checkpoint: AstCheckpoint
    settings: ModelSettings
    function: ScoreFunction
    bucket_frames: tuple[int, ...] = ()
    store: Store = "fbank"
    precision: Precision = "float32"


@naming_gpu_faults()
def load_tagger(choice: ModelChoice, device: torch.device | None = None) -> Tagger:
    """Load a model, or all members of an ensemble that count.

    Raises:
        UserError: there is no model, it lacks these weights or names of its classes; members do not
            go together; or a GPU fails, or has too little memory.
    """
    warnings: list[str] = []
    if is_ensemble(choice.path):
        trained, shares, average = _read_members(choice)
    else:
        trained, shares, average = {choice.path: _read(choice)}, [1.0], "scores"
    labels = _labels(trained, choice)
    members = []
    for (name, one), share in zip(trained.items(), shares, strict=True):
        member, notes = _build(one, name, choice, share, device or torch.device("cpu"))
        members.append(member)
        warnings += notes
    first = next(iter(trained.values())).checkpoint
    return Tagger(
        source=choice.path,
        labels=labels,
        fbank=FbankSettings(num_mels=first.num_mels),
        members=tuple(members),
        averages_logits=average == "logits",
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _read_members(choice: ModelChoice) -> tuple[dict[str, _Trained], list[float], str]:
    ensemble = read_ensemble(choice.path)
    if choice.weights != "last":
        raise UserError(
            f"--weights {choice.weights}",
            "applies only to a run: an ensemble names the weights of its members",
            "drop this option",
        )
    if ensemble.average == "ranks":
        raise UserError(
            choice.path,
            "its members' ranks are averaged, which are defined only among a set of clips",
            "write it again with `ensemble --average scores`",
        )
    trained = {}
    for name, member in ensemble.members.items():
        if member.outputs == "cumulative":
            raise UserError(
                choice.path,
                f"{name} is the mean of scores of all epochs of a run, whose weights are not kept",
                "write the ensemble again without it",
            )
        trained[name] = _read(replace(choice, path=member.run, weights=member.outputs))
    _check_alike(choice.path, trained)
    return trained, [ensemble.weights[name] for name in trained], ensemble.average


def _check_alike(path: str, members: dict[str, _Trained]) -> None:
    (first_name, first), *others = members.items()
    for name, other in others:
        for aspect, is_equal in (
            ("classes", other.checkpoint.labels == first.checkpoint.labels),
            ("numbers of mel bins", other.checkpoint.num_mels == first.checkpoint.num_mels),
            ("scores (sigmoid and softmax)", other.function == first.function),
        ):
            if not is_equal:
                raise UserError(
                    path, f"{first_name} and {name} have different {aspect}, so they have no mean"
                )


def _read(choice: ModelChoice) -> _Trained:
    return _read_run(choice) if is_run(choice.path) else _read_file(choice)


def _read_run(choice: ModelChoice) -> _Trained:
    run = read_run(choice.path)
    recipe = read_recipe(choice.path, run)
    num_mels = run.data.num_mels or FbankSettings().num_mels
    settings = recipe.model.without_weights()
    checkpoint = AstCheckpoint(
        source=choice.path,
        state=read_trained(choice.path, choice.weights),
        model=asdict(settings),
        num_mels=num_mels,
        labels=run.data.labels,
        mean=run.data.mean,
        std=run.data.std,
        loss=recipe.train.loss,
    )
    return _Trained(
        checkpoint=checkpoint,
        settings=settings,
        function=choice.function or recipe.train.score_function,
        bucket_frames=tuple(recipe.sampler.bucket_frames),
        store=run.data.store or "fbank",
        precision=choice.precision or recipe.train.precision,
    )


def _read_file(choice: ModelChoice) -> _Trained:
    if choice.weights != "last":
        raise UserError(
            f"--weights {choice.weights}",
            f"applies only to a run, and {choice.path} is none",
            "drop this option",
        )
    checkpoint = read_weights(choice.path, asdict(ModelSettings()))
    if not isinstance(checkpoint, AstCheckpoint):
        raise UserError(choice.path, "not a whole AST", "name a run, or a model that was exported")
    document = {"model": {**checkpoint.model, "pretrained": False}}
    settings = make_recipe("tagged", document, where=choice.path).model
    return _Trained(
        checkpoint=checkpoint,
        settings=settings.without_weights(),
        function=choice.function or _function_of(checkpoint),
        precision=choice.precision or "float32",
    )


def _function_of(checkpoint: AstCheckpoint) -> ScoreFunction:
    if checkpoint.scores in get_args(ScoreFunction):
        return cast(ScoreFunction, checkpoint.scores)
    return "softmax" if checkpoint.loss == "ce" else "sigmoid"


def _labels(trained: dict[str, _Trained], choice: ModelChoice) -> list[str]:
    """The classes, as the user or the model names them."""
    first = next(iter(trained.values())).checkpoint
    num_classes = len(first.state["head.bias"])
    if choice.labels is None:
        if first.labels is None:
            raise UserError(
                choice.path,
                f"does not name its {num_classes} classes",
                "name them by --labels FILE, a class a line",
            )
        return first.labels
    labels = read_labels(choice.labels)
    if len(labels) != num_classes:
        raise UserError(
            choice.labels, f"names {len(labels)} classes, and the model has {num_classes}"
        )
    return labels


def _build(
    trained: _Trained, name: str, choice: ModelChoice, share: float, device: torch.device
) -> tuple[Member, Sequence[str]]:
    """The model on the device, and warnings."""
    checkpoint, settings = trained.checkpoint, trained.settings
    warnings = []
    num_frames = settings.num_frames
    if choice.window_s is not None:
        fbank = FbankSettings(num_mels=checkpoint.num_mels)
        num_frames = max(num_frames, fbank.num_frames(fbank.samples_in(choice.window_s)))
    if num_frames > settings.num_frames:
        warnings.append(
            f"{name}: was trained on {_seconds(settings.num_frames)} s at a time; for windows of "
            f"{choice.window_s:g} s its positional embedding is interpolated, and the scores may "
            "be worse"
        )
    mean, std = checkpoint.mean, checkpoint.std
    if mean is None or std is None:
        mean, std = PUBLISHED_NORMS["AudioSet"]
        warnings.append(
            f"{name}: does not say how its inputs were normalised; taking AudioSet's mean "
            f"{mean:.4f} and deviation {std:.4f}, so the scores may be wrong"
        )
    # Compiling takes longer than it saves on a few windows.
    settings = replace(settings, num_frames=num_frames, position_embedding="adapt", compile=False)
    num_classes = len(checkpoint.state["head.bias"])
    ast = build_model(settings, num_classes=num_classes, num_mels=checkpoint.num_mels)
    load_ast(ast, checkpoint, settings, rows=list(range(num_classes)))
    member = Member(
        ast=ast.to(device).eval(),
        mean=mean,
        std=std,
        bucket_frames=trained.bucket_frames,
        store=trained.store,
        function=trained.function,
        precision=trained.precision,
        share=share,
    )
    return member, warnings


def _seconds(num_frames: int) -> str:
    return f"{num_frames * FbankSettings().frame_shift_ms / 1000:g}"
