"""Rewrite shards that hold what corrections made old or useless; reads no audio.

In: a complete data set and the manifest it was prepared from. Steps: plan the clips of such shards
anew, in shards of other names; copy each clip that is still used from its old tar, with its present
labels, split and fold, and compare its bytes with their checksum; then write the new plan, index
and card, which removes the old shards. Out: a data set without corrections. Until its card is
removed the old data set is whole; from then on the new shards are, and `prepare` finishes it.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.assemble import assemble, finished_parts, read_card
from pipeline.dataset.card import Corrections
from pipeline.dataset.changes import in_words
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import REPAIR, remove_card
from pipeline.dataset.resume import discard_parts
from pipeline.errors import UserError
from pipeline.manifest.manifest import SCHEMA, Manifest, to_clips
from pipeline.on_ray.settings import WAIT_FOR_NODES_S
from pipeline.on_ray.shared_files import SharedPaths
from pipeline.on_ray.tasks import TASK_MEMORY_BYTES, run_tasks
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import STAGES, Part, TarEntry, part_path, read_part, write_part
from pipeline.shards.plan import (
    Plan,
    ShardSpec,
    next_numbers,
    read_plan,
    read_shard_clips,
    rearranged,
    shard_name,
    with_fingerprint,
    write_plan,
    write_plan_clips,
)
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.tar import Fbank, ShardWriter, checksum, fbank_from_bytes, metadata
from pipeline.shards.usage import Usage
from pipeline.storage.stored_table import StoredTable
from pipeline.terminal.progress import ProgressBar
from pipeline.terminal.units import counted


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewrite:
    """A shard to write from an older one."""

    spec: ShardSpec
    source: str
    """Name of the older one."""
    is_first: bool
    """Of those from this source: it takes over the seconds and bytes that building it took."""


def compact(
    manifest: Manifest,
    output: str,
    settings: PrepareSettings,
    *,
    session: AbstractContextManager[None],
    json_logs: bool = False,
    wait_s: float = WAIT_FOR_NODES_S,
) -> PrepareSummary | None:
    """Rewrite the shards of a complete data set that corrections concern.

    Args:
        manifest: what it was prepared from.
        output: its folder.
        settings: what it was prepared with.
        session: connects to Ray; entered only if there is a shard to rewrite.
        json_logs: report progress as JSON lines.
        wait_s: how long to wait for a node that an autoscaler starts.

    Returns:
        What was done, or None if no shard holds anything old or unused.

    Raises:
        UserError: the plan is lost, or a shard is damaged.
    """
    start = time.monotonic()
    card = read_card(output)
    if card is None or card.corrections is None:
        return None
    job = BuildJob(output=output, settings=settings)
    before = read_plan(job.work)
    assert before is not None  # `prepare` has just found the data set complete
    job = replace(job, settings=before.basis.settings)
    plan, rewrites = plan_compaction(before, manifest)
    write_plan_clips(plan, job.work)
    finished = finished_parts(plan, output, usage=Usage(plan, manifest))
    left = [rewrite for rewrite in rewrites if rewrite.spec.name not in finished]
    discard_parts([rewrite.spec for rewrite in left], output)
    if left:
        largest = max(tar.size_bytes for tar in card.shards)
        with session:
            _rewrite_all(left, job, largest_bytes=largest, json_logs=json_logs, wait_s=wait_s)

    def begin() -> None:
        remove_card(output)
        write_plan(plan, job.work, manifest, settings=settings)

    return assemble(
        plan,
        manifest,
        job,
        built=set(),
        max_reject_share=1.0,
        elapsed_s=lambda: time.monotonic() - start,
        changes=_in_words(len(rewrites), card.corrections),
        begin=begin,
    )


def _in_words(num_shards: int, corrections: Corrections) -> str:
    done = []
    if corrections.num_unused:
        done.append(f"{in_words(corrections.num_unused)} removed")
    if corrections.num_outdated:
        num_clips = in_words(corrections.num_outdated)
        done.append(f"labels, split or fold of {num_clips} written anew")
    what = f"{counted(num_shards, 'shard')} rewritten, no audio read"
    return f"{what}: {', '.join(done)}" if done else what


def plan_compaction(before: Plan, manifest: Manifest) -> tuple[Plan, list[Rewrite]]:
    """Plan the clips of shards anew of which one is unused, or has another label, split or fold.

    They keep their order. A shard becomes one for each split that its clips are in now.
    """
    usage = Usage(before, manifest)
    numbers = next_numbers(before.specs)
    specs: list[ShardSpec] = []
    planned_anew = StoredTable(SCHEMA)
    rewrites: list[Rewrite] = []
    start = 0
    for spec in before.specs:
        planned = before.clips.slice(start, spec.num_clips)
        start += spec.num_clips
        if not usage.is_shard_changed(spec.name):
            specs.append(spec)
            planned_anew.append(planned)
            continue
        used = usage.clips_in(spec.name)
        for split in sorted(pc.unique(used["split"]).to_pylist()):
            clips = used.filter(pc.equal(used["split"], split))
            name = shard_name(split, numbers[split])
            numbers[split] += 1
            new = replace(spec, name=name, num_clips=clips.num_rows)
            specs.append(with_fingerprint(new, before.basis, clips))
            planned_anew.append(clips)
            is_first = not rewrites or rewrites[-1].source != spec.name
            rewrites.append(Rewrite(spec=specs[-1], source=spec.name, is_first=is_first))
    plan = rearranged(before, specs, planned_anew)
    placed = {spec.name: spec for spec in plan.specs}
    return plan, [replace(rewrite, spec=placed[rewrite.spec.name]) for rewrite in rewrites]


def _rewrite_all(
    rewrites: Sequence[Rewrite],
    job: BuildJob,
    *,
    largest_bytes: int,
    json_logs: bool,
    wait_s: float,
) -> None:
    """Rewrite shards in Ray tasks and show progress."""
    with ProgressBar("shards", len(rewrites), json_lines=json_logs) as bar:
        done = run_tasks(
            [asdict(rewrite) for rewrite in rewrites],
            partial(_task, job=job),
            memory_bytes=TASK_MEMORY_BYTES + 4 * largest_bytes,
            shared=SharedPaths(written=(job.output,)),
            wait_s=wait_s,
        )
        for number, _ in enumerate(done, start=1):
            bar.update(number)


def _task(fields: dict[str, Any], job: BuildJob) -> dict[str, Any]:
    spec = ShardSpec(**fields["spec"])
    rewrite_shard(Rewrite(**{**fields, "spec": spec}), job)
    return {"shard": spec.name}


def rewrite_shard(rewrite: Rewrite, job: BuildJob) -> None:
    """Write a shard, and its part file, from an older one.

    Raises:
        UserError: the older one is damaged.
    """
    name = f"shards/{rewrite.spec.name}.tar"
    source = read_part(part_path(job.output, rewrite.source))
    clips = read_shard_clips(job.work, rewrite.spec)
    with storage.new_file(storage.join(job.output, name)) as file:
        writer = ShardWriter(file)
        rows = [{**row, "shard": name} for row in _copy_clips(clips, source, job, writer)]
        writer.finish()
        if rows:
            file.commit()
    tar = TarEntry(
        name=name,
        num_clips=writer.num_clips,
        size_bytes=writer.size_bytes,
        sha256=writer.sha256,
    )
    ids = set(clips["id"].to_pylist())
    part = Part(
        fingerprint=rewrite.spec.fingerprint,
        tar=tar if rows else None,
        index=pa.Table.from_pylist(rows, schema=source.index.schema),
        rejects=tuple(reject for reject in source.rejects if reject.id in ids),
        stages_s=source.stages_s if rewrite.is_first else dict.fromkeys(STAGES, 0.0),
        fetched_bytes=source.fetched_bytes if rewrite.is_first else 0,
        other_rates_hz=source.other_rates_hz
        and {clip_id: rate for clip_id, rate in source.other_rates_hz.items() if clip_id in ids},
    )
    write_part(part_path(job.output, rewrite.spec.name), part)


def _copy_clips(
    clips: pa.Table, source: Part, job: BuildJob, writer: ShardWriter
) -> Iterator[dict[str, Any]]:
    """Append the clips that were not rejected to a tar; yields their rows of the index."""
    if source.tar is None:
        return
    path = storage.join(job.output, source.tar.name)
    data = memoryview(storage.read_bytes(path))
    old_rows = {row["id"]: row for row in source.index.to_pylist()}
    for clip in to_clips(clips):
        row = old_rows.get(clip.id)
        if row is None:
            continue
        stored = bytes(data[row["offset_bytes"] : row["offset_bytes"] + row["size_bytes"]])
        if checksum(stored) != row["xxh3"]:
            raise UserError(path, f"clip {clip.id!r} does not match its checksum", REPAIR)
        content: bytes | Fbank = stored
        if job.settings.store == "fbank":
            content = fbank_from_bytes(stored, job.settings.fbank.num_mels)
        byte_range = writer.add(clip.id, metadata(clip, row["duration_s"]), content)
        now = {"labels": clip.labels, "split": clip.split, "fold": clip.fold}
        yield {**row, **now, "common": clip.common, **asdict(byte_range)}
