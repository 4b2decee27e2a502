"""An AST with the weights that a recipe asks for: random, ImageNet's, or another AST's.

In: the settings of a model, and its classes. Steps: take timm's DeiT or ViT with its weights; or a
whole AST, adapting its positional embedding to other lengths and strides, and keeping its head if
it knows all of the classes. Out: a model to train, or to load a checkpoint into.
"""

import difflib
import logging
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import timm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.checkpoints.ast_checkpoint import AstCheckpoint, missing_labels
from trainer.checkpoints.fit import load_backbone, load_exactly
from trainer.checkpoints.read_weights import read_weights
from trainer.checkpoints.state_files import State
from trainer.checkpoints.timm_hub import create_from_hub
from trainer.model.ast import AST
from trainer.model.patches import adapt_position_embedding
from trainer.model.settings import ModelSettings

_TOKEN_STD = 0.02
_logger = logging.getLogger(__name__)


def build_model(
    settings: ModelSettings,
    *,
    num_classes: int,
    num_mels: int,
    labels: Sequence[str] | None = None,
) -> AST:
    """An AST with the initial weights that the settings ask for.

    The head is random, unless `weights_file` is an AST that knows all of the classes.

    To load a checkpoint into it, pass `settings.without_weights()`, which downloads nothing.

    Args:
        labels: names of the classes, to match those of an AST in `weights_file`; None: assume the
            same order if both have as many classes.

    Raises:
        UserError: weights that cannot be fetched, read or fitted; a backbone that is no plain
            transformer with class tokens; more blocks than it has; a patch higher than the input.
    """
    settings.grid(num_mels)
    weights: AstCheckpoint | State | None = None
    if settings.weights_file:
        weights = read_weights(settings.weights_file, asdict(settings))
    if isinstance(weights, AstCheckpoint):
        model = build_model(settings.without_weights(), num_classes=num_classes, num_mels=num_mels)
        rows = weights.head_rows(num_classes, labels)
        if notice := _head_notice(weights, num_classes, labels, rows):
            _logger.warning("%s", notice)
        load_ast(model, weights, settings, rows=rows)
        return model
    backbone = _create_backbone(settings, weights)
    if settings.depth > len(backbone.blocks):
        raise UserError(
            "model.depth",
            f"must be at most {len(backbone.blocks)}, the number of blocks of "
            f"{settings.backbone}, got {settings.depth}",
        )
    if settings.layer_norm_eps:
        _set_norm_eps(backbone, settings.layer_norm_eps)
    model = AST(backbone, settings, num_classes=num_classes, num_mels=num_mels)
    if not settings.pretrained:
        _draw_class_tokens(model)
    return model


def _draw_class_tokens(model: AST) -> None:
    """As in timm 0.4.5, which the authors used; later versions start the first at nearly 0."""
    for token in (model.cls_token, model.dist_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=_TOKEN_STD)


def load_ast(
    model: AST, checkpoint: AstCheckpoint, settings: ModelSettings, *, rows: list[int] | None
) -> None:
    """Load another AST's weights into a model, adapted to its input and its classes.

    Args:
        settings: those the model was built with.
        rows: row of the checkpoint's head for each class; None: the model's head stays as it is.

    Raises:
        UserError: the names or shapes of the weights differ from the model's; or the mel bins or
            the patch shape do.
    """
    _check_patches(checkpoint, settings, model.input_shape[1])
    state = dict(checkpoint.state)
    own = model.state_dict()
    if settings.depth:
        state = {name: value for name, value in state.items() if _block(name) < settings.depth}
    if settings.position_embedding == "adapt":
        state["pos_embed"] = adapt_position_embedding(
            checkpoint.state["pos_embed"],
            num_class_tokens=checkpoint.num_class_tokens,
            source=checkpoint.grid,
            target=settings.grid(model.input_shape[1]),
        )
    else:
        state["pos_embed"] = own["pos_embed"]
    if rows is None:
        # As in the authors' code, a new head comes with a new LayerNorm.
        state |= {name: value for name, value in own.items() if name.startswith("head")}
    else:
        state |= {name: state[name][rows] for name in ("head.weight", "head.bias")}
    load_exactly(model, state, source=checkpoint.source)


def _check_patches(checkpoint: AstCheckpoint, settings: ModelSettings, num_mels: int) -> None:
    """Reject a checkpoint with other mel bins or another patch shape."""
    if checkpoint.num_mels != num_mels:
        raise UserError(
            checkpoint.source,
            f"the model is for {checkpoint.num_mels} mel bins, and the data has {num_mels}",
            f"use a model for {num_mels}",
        )
    theirs, ours = (
        (shape["patch_frequency"], shape["patch_time"])
        for shape in (checkpoint.model, asdict(settings))
    )
    if theirs != ours:
        raise UserError(
            checkpoint.source,
            f"its patches are {theirs[0]} mel bins x {theirs[1]} frames, not {ours[0]} x {ours[1]}",
            f"set model.patch_frequency={theirs[0]} and model.patch_time={theirs[1]}",
        )


def _block(name: str) -> int:
    """Number of the block that a name in a state dict belongs to; -1: none."""
    match = re.match(r"blocks\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _head_notice(
    checkpoint: AstCheckpoint,
    num_classes: int,
    labels: Sequence[str] | None,
    rows: list[int] | None,
) -> str:
    """A warning about the head's initial weights; empty: none needed."""
    if rows is not None:
        unnamed = checkpoint.labels is None and labels is not None
        assumption = "its classes have no names; assuming the order of the data set's classes"
        return f"{checkpoint.source}: {assumption}" if unnamed else ""
    missing = missing_labels(checkpoint, labels or ())
    reason = (
        f"it lacks {len(missing)} of the {num_classes} classes, such as {missing[0]!r}"
        if missing
        else f"it has {counted(len(checkpoint.state['head.bias']), 'class', 'classes')}, "
        f"not {num_classes}"
    )
    return f"{checkpoint.source}: the head starts from random weights: {reason}"


def check_backbone(name: str) -> None:
    """Reject all but timm's DeiT and ViT models.

    Raises:
        UserError: suggests a similar name.
    """
    try:
        timm.get_pretrained_cfg(name, allow_unregistered=False)
        is_known = name.startswith(("deit_", "vit_"))
    except RuntimeError:
        is_known = False
    if not is_known:
        # Only the failing path pays for listing all of timm's names.
        names = [model for family in ("deit_*", "vit_*") for model in timm.list_models(family)]
        close = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            "model.backbone",
            f"must be a deit_ or vit_ model of timm, got {name!r}",
            f"did you mean {close[0]}?" if close else "",
        )


def _create_backbone(settings: ModelSettings, state: State | None) -> VisionTransformer:
    check_backbone(settings.backbone)
    if settings.pretrained and state is None:
        backbone: Any = create_from_hub(settings.backbone)
    else:
        backbone = timm.create_model(settings.backbone, pretrained=False, num_classes=0)
    if not _is_plain(backbone):
        raise UserError(
            "backbone",
            f"{settings.backbone} is not a plain transformer with class tokens and a learned "
            "positional embedding",
            "use a DeiT such as deit_base_distilled_patch16_384.fb_in1k or a ViT such as "
            "vit_base_patch16_224.orig_in21k_ft_in1k",
        )
    if state is not None:
        load_backbone(backbone, state, source=settings.weights_file)
    return cast(VisionTransformer, backbone)


def _is_plain(backbone: Any) -> bool:
    return (
        isinstance(backbone, VisionTransformer)
        and isinstance(backbone.patch_embed, PatchEmbed)
        and backbone.cls_token is not None
        and backbone.reg_token is None
        and backbone.pos_embed is not None
        and not backbone.no_embed_class
        and backbone.global_pool == "token"
        and isinstance(backbone.patch_embed.norm, nn.Identity)
        and isinstance(backbone.norm_pre, nn.Identity)
        and isinstance(backbone.fc_norm, nn.Identity)
    )


def _set_norm_eps(backbone: nn.Module, eps: float) -> None:
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = eps
