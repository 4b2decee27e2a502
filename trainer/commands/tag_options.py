"""Options of `tag`."""

import argparse
from typing import get_args

from cluster.commands.session_options import add_session_options
from pipeline.audio.settings import Channel
from pipeline.commands.step import fraction, path, positive
from trainer.commands.model_options import add_model, add_model_options
from trainer.commands.options import add_window_options
from trainer.commands.several_runs import share_of_gpu
from trainer.tagging.settings import Format, check_audio_url

_BATCH_SIZE = 16
_MOST_WORKERS = 10_000


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "source",
        type=path,
        help="audio file, folder or prefix, tar, Parquet or HDF5 file with audio, or a manifest",
    )
    parser.add_argument(
        "--out", type=path, help="folder for the tags; a single file needs none (default: none)"
    )
    add_window_options(
        parser, "length of a window", "from the start of a window to that of the next"
    )
    parser.add_argument("--top", type=positive, help="most tags of a window (default: 5)")
    parser.add_argument(
        "--threshold", type=fraction, help="lowest score of a tag, 0 to 1 (default: none)"
    )
    parser.add_argument(
        "--scores",
        choices=("top", "all"),
        default="top",
        help="all: also write the scores of all classes, as float16 (default: %(default)s)",
    )
    parser.add_argument(
        "--embeddings",
        action="store_true",
        help="also write the class-token embedding of each window, as float16",
    )
    parser.add_argument(
        "--format",
        type=_formats,
        action="extend",
        default=[],
        metavar="NAME",
        help="also write the tags as csv, jsonl, audacity or raven; several are separated by "
        "commas; without --out, print them as one of these",
    )
    parser.add_argument(
        "--page",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="draw tags.html, a page with the spectrograms and tags of up to 200 recordings "
        "(default: draw it)",
    )
    parser.add_argument(
        "--audio-url",
        type=_audio_url,
        metavar="PREFIX",
        help="address of the recordings for the page, to which their ids are appended, such as "
        "https://HOST/FOLDER/ or ../recordings/ (default: copies of short ones are in the page)",
    )
    parser.add_argument(
        "--channel",
        choices=get_args(Channel),
        default=get_args(Channel)[0],
        help="what to use of files with several channels (default: %(default)s)",
    )
    add_model_options(parser)
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=_BATCH_SIZE,
        help="windows that the model gets at once (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=_MOST_WORKERS,
        help="most processes with the model at once (default: as many as there is room for)",
    )
    parser.add_argument(
        "--cpus-per-worker",
        type=positive,
        default=1,
        help="CPUs, and threads, of each (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu",
        action=argparse.BooleanOptionalAction,
        help="give each a GPU (default: if the cluster has any, or can start any)",
    )
    parser.add_argument(
        "--gpus-per-worker",
        type=share_of_gpu,
        default=1.0,
        metavar="SHARE",
        help="share of a GPU for each, such as 0.5 for two on one GPU (default: 1)",
    )
    add_session_options(parser)


def _formats(text: str) -> list[str]:
    known = get_args(Format)
    names = [name.strip() for name in text.lower().split(",")]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"must be of {', '.join(known)}, got {name!r}; Parquet is always written"
            )
    return names


def _audio_url(text: str) -> str:
    try:
        check_audio_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text
