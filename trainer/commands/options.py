"""Options shared by several of the trainer's steps."""

import argparse
from typing import get_args

from cluster.commands.session_options import add_session_options
from pipeline.commands.step import path, positive, seconds
from pipeline.errors import SettingValueError, UserError
from trainer.checkpoints.settings import Weights
from trainer.on_ray.settings import Workers
from trainer.tagging.settings import WindowSettings

LOADING = ("trainer.on_ray.train",)
"""Modules that start workers, to import while Ray starts."""
LOADING_MODEL = ("trainer.on_ray.memory",)
"""Modules that check a model before its training; they load PyTorch and timm."""

RECIPE_HELP = "settings of the run: path of a .toml file, or a name such as esc50"


def add_training_options(
    parser: argparse.ArgumentParser, out_help: str, *, must_train: bool = True
) -> None:
    """Options of a step that trains; recipe and data are optional unless `must_train`."""
    parser.add_argument("recipe", nargs=None if must_train else "?", help=RECIPE_HELP)
    parser.add_argument(
        "--data", type=path, required=must_train, help="folder of the prepared data set"
    )
    parser.add_argument("--out", type=path, required=True, help=out_help)
    add_set_option(parser)
    add_worker_options(parser)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="change a setting of the recipe, such as train.epochs=10",
    )


def add_weights_option(parser: argparse.ArgumentParser) -> None:
    choices = get_args(Weights)
    parser.add_argument(
        "--weights",
        choices=choices,
        default=choices[0],
        help="weights to use: the last, or others that the recipe kept (default: %(default)s)",
    )


def add_window_options(parser: argparse.ArgumentParser, window_help: str, hop_help: str) -> None:
    parser.add_argument(
        "--window",
        type=seconds,
        metavar="SECONDS",
        help=f"{window_help} (default: the length of the model's input)",
    )
    parser.add_argument(
        "--hop", type=seconds, metavar="SECONDS", help=f"{hop_help} (default: half a window)"
    )


def window_settings(arguments: argparse.Namespace) -> WindowSettings:
    """The windows that `add_window_options` asked for.

    Raises:
        UserError: a length is out of range.
    """
    try:
        return WindowSettings(length_s=arguments.window, hop_s=arguments.hop)
    except SettingValueError as error:
        option = {"length_s": "--window", "hop_s": "--hop"}[error.name]
        raise UserError(option, error.what) from error


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    defaults = Workers()
    parser.add_argument(
        "--workers",
        type=_worker_range,
        default=str(defaults.num),
        metavar="N or LEAST:MOST",
        help="worker processes of each run; LEAST:MOST: as many as there is room for, while nodes "
        "come and go (default: %(default)s)",
    )
    parser.add_argument(
        "--cpus-per-worker",
        type=positive,
        default=defaults.cpus,
        help="CPUs, and threads, of each worker (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        default=defaults.use_gpu,
        help="give each worker a GPU (default: if the cluster has any, or can start any)",
    )
    add_session_options(parser)


def workers(arguments: argparse.Namespace) -> Workers:
    """The workers that `add_worker_options` asked for."""
    least, most = arguments.workers
    return Workers(
        num=most,
        least=least,
        cpus=arguments.cpus_per_worker,
        use_gpu=arguments.gpu,
        wait_s=arguments.wait_for_nodes,
    )


def _worker_range(text: str) -> tuple[int, int]:
    """`N` or `LEAST:MOST` as the least and the most; the least of a fixed number is 0."""
    first, sign, last = text.partition(":")
    if not sign:
        return 0, positive(text)
    least, most = positive(first), positive(last)
    if least > most:
        raise argparse.ArgumentTypeError(f"the first number must not be the larger, got {text!r}")
    return least, most
