"""Options of the steps that use a trained model of any kind: which one, and how it scores."""

import argparse
from typing import TYPE_CHECKING, get_args

from pipeline.commands.step import path
from trainer.commands.options import add_weights_option
from trainer.model.settings import Precision
from trainer.optim.settings import ScoreFunction

if TYPE_CHECKING:
    from trainer.tagging.load import ModelChoice


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model itself, as the next argument."""
    parser.add_argument(
        "model",
        type=path,
        help="folder of a run or an ensemble, an exported model, a folder of transformers, or a "
        ".pth of the AST authors",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What of the model, and how it scores."""
    parser.add_argument(
        "--labels",
        type=path,
        metavar="FILE",
        help="names of the classes, one a line or as AudioSet's CSV, for a model that has none",
    )
    add_weights_option(parser)
    parser.add_argument(
        "--outputs",
        choices=get_args(ScoreFunction),
        help="what makes scores of the model's outputs (default: as in its training)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        help="precision that the model computes in (default: that of its training)",
    )


def model_choice(arguments: argparse.Namespace) -> "ModelChoice":
    """What these options, and `--window`, say."""
    from trainer.tagging.load import ModelChoice

    return ModelChoice(
        path=arguments.model,
        weights=arguments.weights,
        labels=arguments.labels,
        window_s=arguments.window,
        precision=arguments.precision,
        function=arguments.outputs,
    )
