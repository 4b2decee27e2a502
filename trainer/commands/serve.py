"""`serve`: a trained model over HTTP, with a page for people."""

import argparse
import logging
import os
import sys
from typing import TYPE_CHECKING, NoReturn, get_args

from cluster.commands.session_options import add_session_options, has_cluster, session
from pipeline.audio.settings import Channel
from pipeline.commands.step import Step, positive
from pipeline.errors import INTERRUPTED, SettingValueError, UserError
from trainer.commands.model_options import add_model, add_model_options, model_choice
from trainer.commands.options import add_window_options, window_settings
from trainer.commands.several_runs import share_of_gpu
from trainer.on_ray.settings import Workers
from trainer.serving.settings import (
    HOST,
    MAX_DURATION_S,
    MAX_MB,
    PORT,
    TOKEN_VARIABLE,
    ServedModel,
    ServeLimits,
)
from trainer.tagging.settings import TagSettings

if TYPE_CHECKING:
    import socket

    from trainer.tagging.load import ModelChoice

_logger = logging.getLogger(__name__)

_BATCH_SIZE = 16


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--host",
        default=HOST,
        help="address to listen on; 0.0.0.0: on every interface (default: %(default)s, which only "
        "this machine reaches)",
    )
    parser.add_argument(
        "--port", type=_port, default=PORT, help="0: any that is free (default: %(default)s)"
    )
    parser.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"file with a token that clients must show (default: the variable {TOKEN_VARIABLE}, "
        "else none)",
    )
    parser.add_argument(
        "--max-mb",
        type=float,
        default=MAX_MB,
        help="largest file that is taken, in MB (default: %(default)g)",
    )
    parser.add_argument(
        "--max-duration-s",
        type=float,
        default=MAX_DURATION_S,
        metavar="SECONDS",
        help="longest recording that is tagged (default: %(default)g)",
    )
    _add_tag_options(parser)
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=_BATCH_SIZE,
        help="windows, of several requests, that the model gets at once (default: %(default)s)",
    )
    parser.add_argument(
        "--replicas", type=positive, default=1, help="processes with the model (default: 1)"
    )
    parser.add_argument(
        "--cpus-per-replica",
        type=positive,
        help="CPUs, and threads, of each (default: a local Ray's CPUs are shared out, on a cluster "
        "1)",
    )
    parser.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        help="give each a GPU (default: if the cluster has any, or can start any)",
    )
    parser.add_argument(
        "--gpus-per-replica",
        type=share_of_gpu,
        default=1.0,
        metavar="SHARE",
        help="share of a GPU for each, such as 0.5 for two on one GPU (default: 1)",
    )
    add_session_options(parser)


def _add_tag_options(parser: argparse.ArgumentParser) -> None:
    """Options of `tag` that a server has, too."""
    add_window_options(
        parser,
        "length of a window, and the longest that a request may ask for",
        "from the start of a window to that of the next, where a request does not say it",
    )
    parser.add_argument(
        "--channel",
        choices=get_args(Channel),
        default=get_args(Channel)[0],
        help="what to use of files with several channels, where a request does not say it "
        "(default: %(default)s)",
    )
    add_model_options(parser)


def run(arguments: argparse.Namespace) -> int:
    try:
        limits = ServeLimits(max_mb=arguments.max_mb, max_duration_s=arguments.max_duration_s)
    except SettingValueError as error:
        raise UserError(f"--{error.name.replace('_', '-')}", error.what) from error
    defaults = TagSettings(windows=window_settings(arguments), channel=arguments.channel)
    from trainer.serving.server import open_port
    from trainer.serving.token import read_token

    token = read_token(arguments.token_file)
    opened = open_port(arguments.host, arguments.port)
    try:
        _serve(arguments, opened, token, limits, defaults)
    except KeyboardInterrupt:
        print("interrupted; it no longer answers requests", file=sys.stderr)
        return INTERRUPTED
    finally:
        opened.close()


def _serve(
    arguments: argparse.Namespace,
    opened: "socket.socket",
    token: str | None,
    limits: ServeLimits,
    defaults: TagSettings,
) -> NoReturn:
    from trainer.serving.door import LOCAL_HOSTS, make_app
    from trainer.serving.server import address_of, is_loopback, serving

    choice = model_choice(arguments)
    served = _check_model(choice, defaults)
    is_local = is_loopback(opened)
    if not is_local and token is None:
        _logger.warning(
            "--host %s: whoever reaches this address can use the model; --token-file FILE asks for "
            "a token",
            arguments.host,
        )
    with session(arguments, tells_of_lost_nodes=True):
        from trainer.on_ray.serve import replicas

        with replicas(
            choice,
            _workers(arguments),
            limits,
            batch_size=arguments.batch_size,
            name=f"ast-ray-{arguments.host}-{opened.getsockname()[1]}",
            keeps_running=has_cluster(arguments),
        ) as model:
            app = make_app(
                model,
                served,
                defaults=defaults,
                limits=limits,
                token=token,
                hosts=LOCAL_HOSTS if is_local and token is None else None,
            )
            with serving(app, opened) as thread:
                print(f"serving {served.name} at {address_of(opened)} until Ctrl-C", flush=True)
                # Not one long wait, in which Ctrl-C would not be seen.
                while thread.is_alive():
                    thread.join(0.5)
            raise UserError(address_of(opened), "the server has ended; see the log above")


def _check_model(choice: "ModelChoice", defaults: TagSettings) -> ServedModel:
    """Load the model once in this process, so that mistakes show before Ray starts."""
    from trainer.tagging.job import window_plan
    from trainer.tagging.load import load_tagger

    tagger = load_tagger(choice)
    for warning in tagger.warnings:
        _logger.warning("%s", warning)
    plan, rate_hz = window_plan(tagger, defaults), tagger.fbank.sample_rate_hz
    return ServedModel(
        name=choice.path.rstrip("/").rpartition("/")[2],
        labels=tuple(tagger.labels),
        window_s=plan.length / rate_hz,
        hop_s=plan.hop / rate_hz,
    )


def _workers(arguments: argparse.Namespace) -> Workers:
    cpus = arguments.cpus_per_replica
    if cpus is None and not has_cluster(arguments):
        cpus = (arguments.num_cpus or os.cpu_count() or 1) // arguments.replicas
    return Workers(
        num=arguments.replicas,
        cpus=max(1, cpus or 1),
        use_gpu=arguments.gpu,
        gpus=arguments.gpus_per_replica,
        wait_s=arguments.wait_for_nodes,
        kind="replica",
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


STEP = Step(
    name="serve",
    summary="Serve a trained model over HTTP on Ray Serve: audio in, tags as JSON out, and a page "
    "with files and the microphone.",
    example="runs/esc50 --port 8000",
    add_options=add_options,
    run=run,
)
