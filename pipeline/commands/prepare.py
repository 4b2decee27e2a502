"""`prepare`: turn clips into WebDataset shards, an index and a card."""

import argparse
import json
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, get_args

from cluster.commands.session_options import add_session_options, session
from pipeline.audio.settings import Channel, DecodeSettings
from pipeline.commands.step import Step, fraction, path, positive
from pipeline.errors import SettingValueError, UserError, one_line
from pipeline.shards.settings import BYTES_PER_MB, READS_AHEAD, PrepareSettings, Store

if TYPE_CHECKING:  # it loads PyArrow, which `--help` does not need
    from pipeline.dataset.decide import Work
    from pipeline.dataset.prepare_summary import PrepareSummary
    from pipeline.manifest.manifest import Manifest
    from pipeline.shards.plan import Plan

_logger = logging.getLogger(__name__)

_PLAN_SAMPLE = 64
"""Number of clips that `--plan` measures."""


def add_options(parser: argparse.ArgumentParser) -> None:
    defaults = PrepareSettings()
    parser.add_argument("manifest", type=path, help="table written by `manifest`")
    parser.add_argument("--out", type=path, required=True, help="folder of the prepared data set")
    parser.add_argument(
        "--labels", type=path, help="vocabulary, one label per line (default: the manifest's)"
    )
    parser.add_argument(
        "--max-reject-share",
        type=fraction,
        default=0.1,
        help="fail if a larger share of the clips cannot be used (default: %(default)s)",
    )
    parser.add_argument(
        "--retry-rejects", action="store_true", help="retry clips that were rejected before"
    )
    parser.add_argument(
        "--store",
        choices=get_args(Store),
        default=defaults.store,
        help="how to store a clip: as its fbank, or as 16-bit FLAC, from which training computes "
        "the fbanks, with mixup of waveforms (default: %(default)s)",
    )
    parser.add_argument(
        "--clips-per-shard",
        type=positive,
        default=defaults.clips_per_shard,
        help="most clips in a shard (default: %(default)s)",
    )
    parser.add_argument(
        "--max-duration-s",
        type=float,
        default=defaults.decode.max_duration_s,
        help="reject longer clips (default: %(default)s)",
    )
    parser.add_argument(
        "--max-file-mb",
        type=positive,
        default=defaults.decode.max_file_bytes // BYTES_PER_MB,
        help="reject larger files (default: %(default)s)",
    )
    parser.add_argument(
        "--channel",
        choices=get_args(Channel),
        default=defaults.decode.channel,
        help="channel used of files with several: their mean, the first or the second "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="reject odd files that play nevertheless, such as an MP3 with other bytes before its "
        "first frame; otherwise the index says what was odd",
    )
    parser.add_argument(
        "--reads-ahead",
        type=positive,
        default=READS_AHEAD,
        help="files each task fetches at once (default: %(default)s)",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="dry run: say what would be done, and estimate the cost from a sample of the files",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="then rewrite shards that hold clips or labels of before a correction; reads no audio",
    )
    parser.add_argument(
        "--json-logs", action="store_true", help="progress and summary as JSON lines"
    )
    add_session_options(parser)


def run(arguments: argparse.Namespace) -> None:
    settings = _settings(arguments)

    from pipeline.manifest.checks import check
    from pipeline.manifest.files import read_labels, read_manifest

    manifest = read_manifest(arguments.manifest)
    if arguments.labels:
        manifest = replace(manifest, labels=read_labels(arguments.labels))
        check(manifest, arguments.labels)  # the manifest itself is valid

    from rich.console import Console

    from pipeline import storage
    from pipeline.commands.summaries import prepare_summary
    from pipeline.dataset import prepare as on_ray
    from pipeline.dataset.compact import compact
    from pipeline.dataset.prepared import page_path

    output = arguments.out
    if arguments.plan:
        _plan(manifest, settings, arguments)
        return
    summary = on_ray.prepare(
        manifest,
        output,
        settings,
        session=session(arguments, tells_of_lost_nodes=True),
        max_reject_share=arguments.max_reject_share,
        retry_rejects=arguments.retry_rejects,
        reads_ahead=arguments.reads_ahead,
        json_logs=arguments.json_logs,
        wait_s=arguments.wait_for_nodes,
    )
    if arguments.compact:
        done = compact(
            manifest,
            output,
            settings,
            session=session(arguments, tells_of_lost_nodes=True),
            json_logs=arguments.json_logs,
            wait_s=arguments.wait_for_nodes,
        )
        summary = _both(summary, done)
    page = _draw_page(output) if summary or not storage.exists(page_path(output)) else None
    if arguments.json_logs:
        figures = asdict(summary) if summary else {}
        print(json.dumps({"event": "summary", "page": page, **figures}))
        return
    if summary is None:
        print(
            f"{output}: already complete" + (", no shard to compact" if arguments.compact else "")
        )
    else:
        Console().print(prepare_summary(summary))
    if page:
        print(page)
    if summary and summary.changes:
        print(f"{output}: {summary.changes}")


def _both(
    prepared: "PrepareSummary | None", compacted: "PrepareSummary | None"
) -> "PrepareSummary | None":
    """What the run did: the later summary, which describes the data set, with all changes."""
    if not prepared or not compacted:
        return compacted or prepared
    changes = "; ".join(filter(None, (prepared.changes, compacted.changes)))
    return replace(
        compacted,
        changes=changes,
        num_shards_built=prepared.num_shards_built,
        num_clips_built=prepared.num_clips_built,
        clips_per_s=prepared.clips_per_s,
    )


def _plan(manifest: "Manifest", settings: PrepareSettings, arguments: argparse.Namespace) -> None:
    """Print what would be done, and the estimated cost of clips to compute."""
    from rich.console import Console

    from pipeline.commands.summaries import estimate_summary
    from pipeline.dataset.compact import plan_compaction
    from pipeline.dataset.decide import decide
    from pipeline.shards.estimate import estimate
    from pipeline.shards.job import BuildJob
    from pipeline.shards.plan import read_plan

    output = arguments.out
    job = BuildJob(output=output, settings=settings)
    work = decide(manifest, job, retry_rejects=arguments.retry_rejects)
    planned = None
    if work and work.unfinished:
        planned = estimate(_unfinished(work, manifest, settings), settings, _PLAN_SAMPLE)
    outcome = (work.outcome or work.cost) if work else "already complete"
    if arguments.compact:
        plan = work.plan if work else read_plan(job.work)
        num_shards = len(plan_compaction(plan, manifest)[1]) if plan else 0
        outcome += f"; shards to compact: {num_shards:,}"
    if arguments.json_logs:
        figures = asdict(planned) if planned else {}
        print(json.dumps({"event": "plan", "outcome": outcome, **figures}))
        return
    if planned:
        Console().print(estimate_summary(planned, output))
    if work is None:
        print(f"{output}: {outcome}")
    elif work.before:
        print(f"{output}: planned: {outcome}; nothing was written")


def _unfinished(work: "Work", manifest: "Manifest", settings: PrepareSettings) -> "Plan":
    """A plan of the clips that are left to compute."""
    from pipeline.manifest.manifest import SCHEMA
    from pipeline.shards.plan import make_plan
    from pipeline.storage.stored_table import StoredTable

    if work.unfinished == work.plan.specs:
        return work.plan
    clips = StoredTable(SCHEMA)
    for batch in work.usage.used_clips(spec.name for spec in work.unfinished):
        clips.append(batch)
    return make_plan(replace(manifest, clips=clips), settings)


def _draw_page(output: str) -> str | None:
    """Draw the page; the data set is complete without it, so a failure is only a warning."""
    from pipeline.dataset.prepared import page_path
    from pipeline.pages.dataset_page import write_dataset_page

    try:
        return write_dataset_page(output)
    except Exception as error:
        _logger.warning(
            "%s: not drawn (%s); the data set is complete, and the next `prepare` draws its page",
            page_path(output),
            error.what if isinstance(error, UserError) else one_line(error),
        )
        return None


def _settings(arguments: argparse.Namespace) -> PrepareSettings:
    try:
        return PrepareSettings(
            decode=DecodeSettings(
                max_duration_s=arguments.max_duration_s,
                max_file_bytes=arguments.max_file_mb * BYTES_PER_MB,
                channel=arguments.channel,
                strict=arguments.strict,
            ),
            clips_per_shard=arguments.clips_per_shard,
            store=arguments.store,
        )
    except SettingValueError as error:
        raise UserError(f"--{error.name.replace('_', '-')}", error.what) from error


STEP = Step(
    name="prepare",
    summary="Compute fbanks of all clips and write WebDataset shards, an index and a card. Run the "
    "same command again to resume.",
    example="s3://lab/esc50.parquet --out s3://lab/esc50",
    add_options=add_options,
    run=run,
)
