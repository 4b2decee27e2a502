"""Decide what of an earlier preparation to keep, before anything is written.

In: a manifest, settings and the folder of a data set. Steps: compare them with the card, the plan
and the note of `verify` in the folder. Out: the plan to build, and what changes in the data set;
None, if it is complete; or an error that says why the folder cannot be used for it.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.rejects import MAY_RETURN, SCHEMA
from pipeline.dataset.assemble import any_is_there, finished_parts, is_intact, read_card
from pipeline.dataset.card import Card, common_fingerprint, manifest_fingerprint
from pipeline.dataset.changes import Changes, find_changes, in_words
from pipeline.dataset.prepare_summary import is_damaged
from pipeline.dataset.prepared import ledger_path
from pipeline.dataset.resume import check_output, check_settings, read_damaged
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import part_fingerprints, part_path
from pipeline.shards.plan import (
    LIMITS,
    DamagedPlanError,
    Plan,
    ShardSpec,
    make_plan,
    planned_fingerprint,
    read_plan,
)
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.usage import Usage
from pipeline.terminal.units import counted

_logger = logging.getLogger(__name__)

_SAMPLES_PER_BUCKET = 3
_LOOKS = 64
"""Files of the ledger that are looked for at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is left to do for a data set that is incomplete, or to be corrected."""

    plan: Plan
    usage: Usage
    """Which clips of the plan the manifest uses."""
    changes: Changes
    """What differs from an earlier data set in the folder."""
    before: Plan | None
    """The plan of the existing shards; None if there are none, or it is lost."""
    stale: tuple[ShardSpec, ...]
    """Shards without a part file that vouches for their tar."""

    @property
    def unfinished(self) -> tuple[ShardSpec, ...]:
        """The shards to build: stale ones with a clip that the manifest uses."""
        return tuple(spec for spec in self.stale if self.usage.num_used(spec.name))

    @property
    def cost(self) -> str:
        """What is read and written, in words."""
        if not self.unfinished:
            return "index and card written anew, no audio read"
        num_clips = sum(spec.num_clips for spec in self.unfinished)
        num_kept = len(self.plan.specs) - len(self.stale)
        return f"audio of {in_words(num_clips)} read, {counted(num_kept, 'shard')} kept"

    @property
    def outcome(self) -> str:
        """What is corrected in an earlier data set, and at what cost; empty: nothing."""
        if not self.changes:
            return ""
        left = "; --compact removes what is left of them" if self.changes.num_removed else ""
        return f"{self.changes}: {self.cost}{left}"


def decide(manifest: Manifest, job: BuildJob, *, retry_rejects: bool) -> Work | None:
    """Decide what is left to do for a data set. Writes nothing.

    Args:
        manifest: the clips.
        job: the output and the settings.
        retry_rejects: rebuild shards that have rejected clips.

    Returns:
        The work, or None if the data set is complete.

    Raises:
        UserError: the output or the audio's bucket cannot be used, the output holds other files or
            another data set, or one that was prepared with other settings.
    """
    output, settings = job.output, job.settings
    card, damaged = read_card(output), read_damaged(job.work)
    if not card:
        check_output(output)

    def is_complete(fingerprint: str | None, *, is_corrected: bool) -> bool:
        return (
            card is not None
            and card.plan_fingerprint == fingerprint
            and is_corrected == (card.corrections is not None)
            and (
                card.corrections is None
                or card.corrections.manifest_fingerprint == manifest_fingerprint(manifest)
            )
            and tuple(card.labels) == manifest.labels
            and card.coverage == manifest.coverage
            and card.common_fingerprint == common_fingerprint(manifest)
            and damaged is None
            and not (retry_rejects and card.rejects.num)
            and is_intact(card, output)
            and not is_damaged(output)
            and not (card.rejects.num and any_is_there(_may_return(output), threads=_LOOKS))
        )

    fingerprint = planned_fingerprint(job.work, manifest, settings)
    if card and is_complete(fingerprint, is_corrected=card.corrections is not None):
        return None
    before, lost, usage_before = None, None, None
    try:
        before = read_plan(job.work) if card or _has_tar(output) else None
    except DamagedPlanError as error:
        lost = error
    changes, again = Changes(), list[str]()
    if before:
        check_settings(before, settings, output)
        usage_before = Usage(before, manifest)
        _check_same_clips(before, usage_before, output)
        again = _rejected_by_lower_limits(before, usage_before, settings, output)
        changes = find_changes(manifest, output, card, before, usage_before)
        changes = replace(changes, num_again=len(again))
    rows_before = usage_before.rows if usage_before else None
    plan = make_plan(manifest, settings, before, again, rows_before=rows_before)
    if lost and not _reproduces(plan, lost.fingerprint, card, output):
        raise lost
    usage = Usage(plan, manifest, usage_before)
    if is_complete(plan.fingerprint, is_corrected=usage.is_changed) and not lost:
        return None
    if card and not before and card.plan_fingerprint != plan.fingerprint:
        raise UserError(
            output,
            "holds a data set prepared from another manifest or with other settings, and lacks "
            "_work/plan.json, without which it cannot be corrected",
            "restore _work, or give another --out",
        )
    finished = finished_parts(
        plan,
        output,
        usage=usage,
        retry_rejects=retry_rejects,
        look_again=True,
        damaged=frozenset(damaged.shards if damaged else ()),
    )
    _logger.debug("%d of %d shards are finished", len(finished), len(plan.specs))
    stale = tuple(spec for spec in plan.specs if spec.name not in finished)
    work = Work(plan=plan, usage=usage, changes=changes, before=before, stale=stale)
    _check_buckets(usage.used_clips((spec.name for spec in work.unfinished), ["uri"]))
    return work


def _rejected_by_lower_limits(
    plan: Plan, usage: Usage, settings: PrepareSettings, output: str
) -> list[str]:
    """Ids of clips that were rejected for a limit that is higher now."""

    def is_lower(spec: ShardSpec, name: str) -> bool:
        before = spec.settings(plan.basis.settings).decode
        return bool(getattr(before, name) < getattr(settings.decode, name))

    lower = [spec for spec in plan.specs if any(is_lower(spec, name) for name in LIMITS)]
    if not lower:
        return []
    parts = finished_parts(plan, output, usage=usage)
    return [
        reject.id
        for spec in lower
        if spec.name in parts
        for reject in parts[spec.name].over_limits
        if reject.limit and is_lower(spec, reject.limit)
    ]


def _has_tar(output: str) -> bool:
    """Whether a clip was built; a plan of which none is can be replaced."""
    return any(path.endswith(".tar") for path in storage.list_files(storage.join(output, "shards")))


def _check_same_clips(plan: Plan, usage: Usage, output: str) -> None:
    if not (usage.rows >= 0).any():
        num_clips = pc.count_distinct(plan.clips["id"]).as_py()
        raise UserError(
            output,
            f"holds another data set: the manifest has none of its {in_words(num_clips)} with the "
            "same id, path and stretch",
            "give another --out; if the audio has only moved, keep the earlier paths in the "
            "manifest",
        )


def _reproduces(plan: Plan, fingerprint: str | None, card: Card | None, output: str) -> bool:
    """Whether a new plan equals a lost one: by its fingerprint, or else by the finished shards."""
    known = {fingerprint, card.plan_fingerprint if card else None} - {None}
    if known:
        return plan.fingerprint in known
    specs = {part_path(output, spec.name): spec.fingerprint for spec in plan.specs}
    return all(specs.get(path) == found for path, found in part_fingerprints(output).items())


def _may_return(output: str) -> list[str]:
    """Files of the ledger that were missing or refused."""
    try:
        ledger = storage.parse_table(storage.read_bytes(ledger_path(output)), SCHEMA)
    except storage.DocumentError:
        return []  # for `verify` to find
    is_fetch = pc.equal(ledger["stage"], "fetch")
    may_return = pc.and_(is_fetch, pc.is_in(ledger["reason"], pa.array(MAY_RETURN)))
    uris: list[str] = ledger["uri"].filter(may_return).to_pylist()
    return uris


def _check_buckets(batches: Iterator[pa.Table]) -> None:
    """Fail before any work when a bucket of these clips cannot be read."""
    samples: dict[str, list[str]] = {}
    for batch in batches:
        remote = batch["uri"].filter(pc.match_substring(batch["uri"], "://"))
        buckets = pc.replace_substring_regex(remote, r"^([a-z0-9]+://[^/]+/).*", r"\1")
        for bucket in pc.unique(buckets).to_pylist():
            known = samples.setdefault(bucket, [])
            if (num_wanted := _SAMPLES_PER_BUCKET - len(known)) > 0:
                of_bucket = remote.filter(pc.equal(buckets, bucket))
                known += of_bucket.slice(0, num_wanted).to_pylist()
    for uris in samples.values():
        storage.check_readable(uris)
