"""From manifest to prepared data set: decide what to keep, build unfinished shards, assemble.

Each task builds one shard. Names of shards are stable, so a restart skips finished ones; no audio
passes between processes.
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.dataset.assemble import assemble
from pipeline.dataset.decide import decide
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import remove_card
from pipeline.dataset.resume import clear_damaged, discard_parts, remove_unfinished
from pipeline.manifest.manifest import Manifest
from pipeline.on_ray.metrics import prepare_gauges
from pipeline.on_ray.settings import WAIT_FOR_NODES_S
from pipeline.on_ray.shared_files import SharedPaths
from pipeline.on_ray.tasks import TASK_MEMORY_BYTES, run_tasks
from pipeline.shards.job import BuildJob
from pipeline.shards.plan import ShardSpec, write_plan
from pipeline.shards.settings import READS_AHEAD, PrepareSettings
from pipeline.shards.usage import Usage
from pipeline.terminal.progress import ProgressBar, Rate

_TASK_MEMORY_PER_CLIP_BYTES = 600_000
"""A tar on its way to S3 is held in memory, up to 256 MiB of it; this leaves room for the parts
that are being sent."""


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
    wait_s: float = WAIT_FOR_NODES_S,
) -> PrepareSummary | None:
    """Prepare a data set, or resume an earlier run.

    Args:
        manifest: the clips.
        output: the data set's folder, local or on S3.
        settings: everything that determines its bytes.
        session: connects to Ray; entered only if there is a shard to build.
        max_reject_share: the largest share of clips that may be rejected, 0 to 1.
        retry_rejects: rebuild shards that have rejected clips.
        reads_ahead: files each task fetches at once.
        json_logs: report progress as JSON lines.
        wait_s: how long to wait for a node that an autoscaler starts.

    Returns:
        What was done, or None if the data set is already complete.

    Raises:
        UserError: the output or the audio's bucket cannot be used, the output holds other files or
            another data set, or one of other settings, or too many clips were rejected.
    """
    start = time.monotonic()
    storage.check_bucket(output)
    job = BuildJob(output=output, settings=settings, reads_ahead=reads_ahead)
    work = decide(manifest, job, retry_rejects=retry_rejects)
    if work is None:
        return None
    job = replace(job, settings=work.plan.basis.settings)

    def begin() -> None:
        # Until the new card is written, tars may differ from the old index.
        remove_card(output)
        write_plan(work.plan, job.work, manifest, work.before, settings)

    if work.stale:
        begin()
        # After a stop between a new tar and its part file, the old part would vouch for the tar.
        discard_parts(work.stale, output)
    if work.unfinished:
        # Before the first task, since the disk may be nearly full.
        remove_unfinished(output)
        with session:
            shared = SharedPaths(read=_some_files(manifest), written=(output,))
            tasks = _Tasks(shared=shared, wait_s=wait_s, json_logs=json_logs)
            _build(work.unfinished, work.usage, job, tasks)
    summary = assemble(
        work.plan,
        manifest,
        job,
        built={spec.name for spec in work.unfinished},
        max_reject_share=max_reject_share,
        elapsed_s=lambda: time.monotonic() - start,
        changes=work.outcome,
        # If no tar changes, the old data set can be read until all is ready to be written.
        begin=begin if not work.stale else lambda: None,
    )
    clear_damaged(job.work)
    return summary


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tasks:
    """How the tasks run."""

    shared: SharedPaths
    wait_s: float
    json_logs: bool


def _some_files(manifest: Manifest) -> tuple[str, ...]:
    """The first of the clips' files, one in the middle, and the last."""
    last = manifest.clips.num_rows - 1
    rows = manifest.clips.take(pa.array(sorted({0, last // 2, last})))
    return tuple(rows["uri"].to_pylist())


def _build(specs: Sequence[ShardSpec], usage: Usage, job: BuildJob, how: _Tasks) -> None:
    """Build shards in Ray tasks and show progress."""
    max_clips = max(spec.num_clips for spec in specs)
    tasks = run_tasks(
        [asdict(spec) for spec in specs],
        partial(_task, job=job),
        memory_bytes=TASK_MEMORY_BYTES + max_clips * _TASK_MEMORY_PER_CLIP_BYTES,
        shared=how.shared,
        wait_s=how.wait_s,
    )
    total = int((usage.rows >= 0).sum())
    done = total - sum(usage.num_used(spec.name) for spec in specs)
    rate = Rate()
    num_rejects = 0
    with (
        ProgressBar("clips", total, json_lines=how.json_logs) as bar,
        prepare_gauges(job.output) as gauges,
    ):
        bar.update(done)
        gauges.set({"ast_prepare_clips": done, "ast_prepare_num_clips": total})
        for result in tasks:
            done += usage.num_used(result["shard"])
            num_rejects += result["num_rejects"]
            rate.add(result["num_clips"], result["fetched_bytes"])
            figures = rate.figures(total - done)
            bar.update(done, figures={**figures, "rejected": num_rejects})
            gauges.set(
                {
                    "ast_prepare_clips": done,
                    "ast_prepare_rejects": num_rejects,
                    "ast_prepare_clips_per_s": figures["clips/s"],
                    "ast_prepare_bytes_per_s": figures["MB/s"] * 1e6,
                }
            )


def _task(fields: dict[str, Any], job: BuildJob) -> dict[str, Any]:
    # Loads PyTorch, which only the workers need.
    from pipeline.shards.build import build_shard

    spec = ShardSpec(**fields)
    part = build_shard(spec, job)
    return {
        "shard": spec.name,
        "num_clips": spec.num_clips,
        "num_rejects": len(part.rejects),
        "fetched_bytes": part.fetched_bytes,
    }
