"""Manifest to prepared data set on Ray Data; the only module of `pipeline` that imports Ray.

One row of the Ray Data set is one shard's specification, and one task builds one shard: names are
stable, so a restart skips what is finished, and no clip passes through the object store.
"""

import logging
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from typing import Any

import ray
import ray.data

from pipeline import storage
from pipeline.assemble import PrepareSummary, assemble, complete_card, finished_parts
from pipeline.build import BuildJob, build_shard
from pipeline.dataset import card_path
from pipeline.manifest import Manifest
from pipeline.plan import Plan, PrepareSettings, ShardSpec, make_plan
from pipeline.progress import ProgressBar

_TASK_MEMORY_BYTES = 500_000_000
"""What a task takes with its libraries, before it holds any clip."""
_TASK_MEMORY_PER_CLIP_BYTES = 600_000
"""A shard is held in memory once as a tar; this leaves room for its copy on the way to storage."""

_SAMPLES_PER_BUCKET = 3


def prepare(
    manifest: Manifest,
    output: str,
    settings: PrepareSettings,
    *,
    session: AbstractContextManager[None],
    max_reject_share: float,
    retry_rejects: bool = False,
    reads_ahead: int = 8,
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

    Returns:
        What was done, or None if the data set was complete already.

    Raises:
        UserError: the output or the audio's bucket cannot be used, another data set is there, or
            too many clips were rejected.
    """
    start = time.monotonic()
    storage.check_bucket(output)
    _check_buckets(manifest)
    plan = make_plan(manifest, settings)
    card = complete_card(output, plan)
    if card is not None:
        if not (retry_rejects and card["rejects"]["num"]):
            return None
        # From here until the new card is there, tars may change under the old index.
        storage.remove(card_path(output))
    plan_path = storage.join(output, "_work", "plan.parquet")
    job = BuildJob(output=output, plan_path=plan_path, settings=settings, reads_ahead=reads_ahead)
    finished = finished_parts(plan, output, retry_rejects=retry_rejects)
    waiting = [spec for spec in plan.specs if spec.name not in finished]
    if waiting:
        plan.write(plan_path)
        with session:
            _build(waiting, plan, job)
    return assemble(
        plan,
        manifest,
        job,
        built={spec.name for spec in waiting},
        max_reject_share=max_reject_share,
        elapsed_s=lambda: time.monotonic() - start,
    )


def _build(specs: list[ShardSpec], plan: Plan, job: BuildJob) -> None:
    """Build shards in Ray tasks and show how it goes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # It would tell of every plan, and of an error before we do; its log file still has all of it.
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    shards = ray.data.from_items(
        [asdict(spec) for spec in specs], override_num_blocks=len(specs)
    ).map(
        partial(_task, job=job),
        num_cpus=1,
        memory=_task_memory_bytes(max(spec.num_clips for spec in specs)),
    )
    total = plan.clips.num_rows
    done = total - sum(spec.num_clips for spec in specs)
    num_rejects, start, first = 0, time.monotonic(), done
    with ProgressBar("clips", total) as bar:
        bar.update(done)
        for row in shards.iter_rows():
            done += row["num_clips"]
            num_rejects += row["num_rejects"]
            rate = (done - first) / (time.monotonic() - start)
            bar.update(done, f"{rate:.0f} clips/s, {num_rejects} rejected")


def _task_memory_bytes(num_clips: int) -> float:
    """What to ask Ray for; a task that asks for more than any node has would wait for ever."""
    needed = _TASK_MEMORY_BYTES + num_clips * _TASK_MEMORY_PER_CLIP_BYTES
    nodes = [float(node["Resources"].get("memory", 0)) for node in ray.nodes() if node["Alive"]]
    return min(needed, max(nodes))


def _task(row: dict[str, Any], job: BuildJob) -> dict[str, Any]:
    spec = ShardSpec(**row)
    part = build_shard(spec, job)
    return {"name": spec.name, "num_clips": spec.num_clips, "num_rejects": len(part.rejects)}


def _check_buckets(manifest: Manifest) -> None:
    """Fail before any work when a bucket that the manifest names cannot be read."""
    samples: dict[str, list[str]] = {}
    for uri in manifest.clips["uri"].to_pylist():
        if storage.is_remote(uri):
            bucket_uris = samples.setdefault("/".join(uri.split("/")[:3]), [])
            if len(bucket_uris) < _SAMPLES_PER_BUCKET:
                bucket_uris.append(uri)
    for uris in samples.values():
        storage.check_readable(uris)
