"""`tag`: what sounds in recordings, window by window, by a trained model."""

import argparse
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

from cluster.commands.session_options import has_cluster, session
from pipeline.commands.step import Step
from pipeline.errors import UserError, one_line
from trainer.commands.model_options import model_choice
from trainer.commands.options import window_settings
from trainer.commands.tag_options import add_options
from trainer.on_ray.settings import Workers
from trainer.tagging.settings import KeepSettings, TagSettings

if TYPE_CHECKING:
    import pyarrow as pa

    from trainer.tagging.assemble import TagCard
    from trainer.tagging.job import TagParts
    from trainer.tagging.model import Tagger
    from trainer.tagging.source import Recordings

_logger = logging.getLogger(__name__)

_HERE_RECORDINGS = 100
_HERE_BYTES = 100_000_000
"""So much audio is tagged in this process before Ray has started."""


def run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)
    if arguments.out is None and len(set(arguments.format)) > 1:
        raise UserError(
            "--format", "several formats need a folder", "name one by --out, or a single format"
        )
    recordings = _list(arguments)
    if arguments.out is None:
        _tag_without_files(arguments, recordings, settings)
    else:
        _tag_to_folder(arguments, recordings, settings)


def _settings(arguments: argparse.Namespace) -> TagSettings:
    return TagSettings(
        windows=window_settings(arguments),
        keep=KeepSettings(
            top=arguments.top,
            threshold=arguments.threshold,
            all_scores=arguments.scores == "all",
            embeddings=arguments.embeddings,
        ),
        channel=arguments.channel,
    )


def _list(arguments: argparse.Namespace) -> "Recordings":
    from trainer.tagging.source import list_recordings

    recordings = list_recordings(arguments.source)
    for note in recordings.notes:
        _logger.info("%s: %s", arguments.source, note)
    if arguments.out is None and len(recordings) > 1:
        raise UserError(
            "--out", f"{len(recordings):,} recordings need a folder", "name one by --out"
        )
    return recordings


def _load(arguments: argparse.Namespace) -> "Tagger":
    """The model in this process."""
    import torch

    from trainer.tagging.load import load_tagger

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tagger = load_tagger(model_choice(arguments), device)
    for warning in tagger.warnings:
        _logger.warning("%s", warning)
    return tagger


def _tag_without_files(
    arguments: argparse.Namespace, recordings: "Recordings", settings: TagSettings
) -> None:
    from pipeline.audio.sandbox import DecoderProcess
    from trainer.tagging.formats import print_tags
    from trainer.tagging.job import tag_in_memory

    with DecoderProcess() as decoder:
        decoder.start()  # while the model loads
        tagger, clips = _load(arguments), recordings.clips_of()
        tags = tag_in_memory(tagger, clips, settings, decoder, batch_size=arguments.batch_size)
    if not tags.windows.num_rows:
        raise UserError(arguments.source, f"nothing to tag: {tags.rejects[0].reason}")
    for reject in tags.rejects:
        _logger.warning("%s: %s: %s", arguments.source, reject.stage, reject.reason)
    rate_hz = tagger.fbank.sample_rate_hz
    if arguments.format:
        print_tags(arguments.format[0], tags.windows, tags.recordings, rate_hz)
    else:
        _print_one(tags.recordings, tags.windows)
    _warn_of_low_rates(Counter(tags.recordings["file_rate_hz"].to_pylist()), rate_hz)


def _tag_to_folder(
    arguments: argparse.Namespace, recordings: "Recordings", settings: TagSettings
) -> None:
    from rich.console import Console

    from pipeline import storage
    from pipeline.audio.sandbox import DecoderProcess
    from trainer.tagging.assemble import RECORDINGS, WINDOWS
    from trainer.tagging.formats import write_formats
    from trainer.tagging.job import tag_here, tag_recordings
    from trainer.tagging.summary import card_table

    tagger = _load(arguments)
    is_here = _fits_here(arguments, recordings)
    with (
        DecoderProcess() as decoder,
        nullcontext() if is_here else session(arguments, tells_of_lost_nodes=True),
    ):
        card = tag_recordings(
            tagger,
            recordings,
            arguments.source,
            arguments.out,
            settings,
            batch_size=arguments.batch_size,
            tag_parts=tag_here(tagger, decoder) if is_here else _on_ray(arguments, recordings),
        )
    write_formats(arguments.out, arguments.format, card)
    page = _draw_page(arguments, recordings, card) if arguments.page else None
    if card.num_recordings == len(recordings) == 1:
        rows, windows = (
            storage.read_table(storage.join(arguments.out, name)) for name in (RECORDINGS, WINDOWS)
        )
        _print_one(rows, windows)
    Console().print(card_table(arguments.out, card))
    print(storage.join(arguments.out, WINDOWS))
    if page is not None:
        print(page)
    rates = {int(rate): num for rate, num in card.low_rates.items()}
    _warn_of_low_rates(rates, card.plan.sample_rate_hz)


def _draw_page(
    arguments: argparse.Namespace, recordings: "Recordings", card: "TagCard"
) -> str | None:
    """Draw the page; the tags are complete without it, so a failure is only a warning."""
    from pipeline import storage
    from trainer.tagging.tags_page import PAGE, write_tags_page

    try:
        return write_tags_page(arguments.out, recordings, card, arguments.audio_url)
    except Exception as error:
        _logger.warning(
            "%s: not drawn (%s); the tags are complete, and the same command draws it",
            storage.join(arguments.out, PAGE),
            error.what if isinstance(error, UserError) else one_line(error),
        )
        return None


def _fits_here(arguments: argparse.Namespace, recordings: "Recordings") -> bool:
    """Whether Ray would cost more than it gives."""
    is_small = (
        len(recordings) <= _HERE_RECORDINGS
        and recordings.sizes_bytes.null_count == 0
        and recordings.total_bytes <= _HERE_BYTES
    )
    if has_cluster(arguments):
        return len(recordings) == 1 and is_small
    return len(recordings) == 1 or is_small


def _on_ray(arguments: argparse.Namespace, recordings: "Recordings") -> "TagParts":
    from pipeline import storage
    from pipeline.on_ray.shared_files import SharedPaths
    from trainer.on_ray.tag import tag_on_ray

    storage.make_folder(arguments.out)
    read = [arguments.model, *recordings.uris(1), *filter(None, [arguments.labels])]
    shared = SharedPaths(read=tuple(read), written=(arguments.out,))
    workers = Workers(
        num=arguments.workers,
        cpus=arguments.cpus_per_worker,
        use_gpu=arguments.gpu,
        gpus=arguments.gpus_per_worker,
        wait_s=arguments.wait_for_nodes,
    )
    return tag_on_ray(model_choice(arguments), workers, shared)


def _print_one(recordings: "pa.Table", windows: "pa.Table") -> None:
    from rich.console import Console

    from trainer.tagging.summary import recording_table

    Console().print(recording_table(recordings, windows))


def _warn_of_low_rates(rates: Mapping[int, int], sample_rate_hz: int) -> None:
    from trainer.tagging.summary import low_rate_warning

    if warning := low_rate_warning(rates, sample_rate_hz):
        _logger.warning("%s", warning)


STEP = Step(
    name="tag",
    summary="Tag recordings of any length with a trained model: the classes of each window, with "
    "scores, as Parquet; for a single file also as a table.",
    example="runs/esc50 recordings/ --out tags",
    add_options=add_options,
    run=run,
)
