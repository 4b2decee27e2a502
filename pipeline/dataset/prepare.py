"""Manifest to prepared data set: decide what may stand, build what is not finished, assemble.

One item is one shard's specification, and one task builds one shard: names are stable, so a restart
skips what is finished, and no audio passes between processes.
"""

import logging
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

from pipeline import storage
from pipeline.dataset.assemble import assemble, finished_parts
from pipeline.dataset.decide import decide
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import card_path
from pipeline.dataset.resume import clear_damaged, discard_parts, remove_unfinished
from pipeline.manifest.manifest import Manifest
from pipeline.on_ray import TASK_MEMORY_BYTES, run_tasks
from pipeline.shards.build import BuildJob, build_shard
from pipeline.shards.plan import Plan, ShardSpec, write_plan
from pipeline.shards.settings import READS_AHEAD, PrepareSettings
from pipeline.terminal.progress import ProgressBar, Rate

_logger = logging.getLogger(__name__)

_TASK_MEMORY_PER_CLIP_BYTES = 600_000
"""On its way to S3 a shard is held in memory as a tar; this leaves room for a copy of it."""


def prepare(
    manifest: Manifest,
    output: str,
    settings: PrepareSettings,
    *,
    session: AbstractContextManager[None],
    max_reject_share: float,
    retry_rejects: bool = False,
    reads_ahead: int = READS_AHEAD,
    json_logs: bool = False,
) -> PrepareSummary | None:
    """Prepare a data set, or carry on where an earlier run was stopped.

    Args:
        manifest: the clips.
        output: the data set's folder, local or on S3.
        settings: what decides its bytes.
        session: entered only if there is a shard to build: connects to Ray.
        max_reject_share: the largest share of clips that may be rejected, 0 to 1.
        retry_rejects: build shards again that have rejected clips.
        reads_ahead: files each task fetches at once.
        json_logs: tell of the progress in JSON lines.

    Returns:
        What was done, or None if the data set was complete already.

    Raises:
        UserError: the output or the audio's bucket cannot be used, something else or another data
            set is there, clips of it were removed or changed, or too many clips were rejected.
    """
    start = time.monotonic()
    storage.check_bucket(output)
    job = BuildJob(output=output, settings=settings, reads_ahead=reads_ahead)
    work = decide(manifest, job, retry_rejects=retry_rejects)
    if work is None:
        return None
    # From here until the new card is there, tars may change under the old index.
    storage.remove(card_path(output))
    write_plan(work.plan, job.work, manifest, work.before)
    finished = finished_parts(
        work.plan, output, retry_rejects=retry_rejects, damaged=work.damaged_shards
    )
    waiting = [spec for spec in work.plan.specs if spec.name not in finished]
    _logger.debug("%d of %d shards are finished", len(finished), len(work.plan.specs))
    if waiting:
        # Stopped between a new tar and its part file, an earlier part would vouch for the tar.
        discard_parts(waiting, output)
        # Before the first task, as disks may be nearly full.
        remove_unfinished(output)
        with session:
            _build(waiting, work.plan, job, json_logs=json_logs)
    summary = assemble(
        work.plan,
        manifest,
        job,
        built={spec.name for spec in waiting},
        max_reject_share=max_reject_share,
        elapsed_s=lambda: time.monotonic() - start,
    )
    clear_damaged(job.work)
    return summary


def _build(specs: list[ShardSpec], plan: Plan, job: BuildJob, *, json_logs: bool) -> None:
    """Build shards in Ray tasks and show how it goes."""
    largest = max(spec.num_clips for spec in specs)
    tasks = run_tasks(
        [asdict(spec) for spec in specs],
        partial(_task, job=job),
        memory_bytes=TASK_MEMORY_BYTES + largest * _TASK_MEMORY_PER_CLIP_BYTES,
    )
    total = plan.clips.num_rows
    done = total - sum(spec.num_clips for spec in specs)
    rate = Rate()
    num_rejects = 0
    with ProgressBar("clips", total, json_lines=json_logs) as bar:
        bar.update(done)
        for row in tasks:
            done += row["num_clips"]
            num_rejects += row["num_rejects"]
            rate.add(row["num_clips"], row["fetched_bytes"])
            bar.update(done, figures={**rate.figures(total - done), "rejected": num_rejects})


def _task(row: dict[str, Any], job: BuildJob) -> dict[str, Any]:
    spec = ShardSpec(**row)
    part = build_shard(spec, job)
    return {
        "num_clips": spec.num_clips,
        "num_rejects": len(part.rejects),
        "fetched_bytes": part.fetched_bytes,
    }
