"""Decide what of an earlier preparation to keep, before anything is written.

In: a manifest, settings and the folder of a data set. Steps: compare them with the card, the plan
and the note of `verify` in the folder. Out: the plan to build; None, if the data set is complete;
or an error that says why the folder cannot be used for it.
"""

from dataclasses import dataclass

import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.rejects import SCHEMA, Reject
from pipeline.dataset.assemble import any_is_back, is_intact, read_card
from pipeline.dataset.card import Card, common_fingerprint
from pipeline.dataset.prepare_summary import is_damaged
from pipeline.dataset.resume import check_output, check_resumable, read_damaged
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.build import BuildJob
from pipeline.shards.parts import has_parts, part_fingerprints, part_path
from pipeline.shards.plan import DamagedPlanError, Plan, make_plan, planned_fingerprint, read_plan

_SAMPLES_PER_BUCKET = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is left to do for an incomplete data set."""

    plan: Plan
    before: Plan | None
    """The plan of the existing shards; None if there are none, or it is lost."""
    damaged_shards: frozenset[str]
    """Shards that `verify` found damaged: to be rebuilt."""


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
            another data set, or clips of it were removed or changed.
    """
    output, settings = job.output, job.settings
    card, damaged = read_card(output), read_damaged(job.work)
    if not card:
        check_output(output)

    def is_complete(fingerprint: str | None) -> bool:
        return (
            card is not None
            and card.plan_fingerprint == fingerprint
            and card.coverage == manifest.coverage
            and card.common_fingerprint == common_fingerprint(manifest)
            and damaged is None
            and not (retry_rejects and card.rejects.num)
            and is_intact(card, output)
            and not is_damaged(output)
            and not any_is_back(_rejects(output) if card.rejects.num else ())
        )

    if is_complete(planned_fingerprint(job.work, manifest, settings)):
        return None
    _check_buckets(manifest)
    # A plan with no shard built yet can be replaced.
    before, lost = None, None
    try:
        before = read_plan(job.work) if card or damaged or has_parts(output) else None
    except DamagedPlanError as error:
        lost = error
    if before:
        check_resumable(before, manifest, settings, output)
    plan = make_plan(manifest, settings, before)
    if lost and not _reproduces(plan, lost.fingerprint, card, output):
        raise lost
    if is_complete(plan.fingerprint) and not lost:
        return None
    if card and not before and card.plan_fingerprint != plan.fingerprint:
        raise UserError(
            output,
            "holds a data set prepared from another manifest or with other settings",
            "give another --out, or remove it",
        )
    shards = frozenset(damaged.shards if damaged else ())
    return Work(plan=plan, before=before, damaged_shards=shards)


def _reproduces(plan: Plan, fingerprint: str | None, card: Card | None, output: str) -> bool:
    """Whether a new plan equals a lost one: by its fingerprint, or else by the finished shards."""
    known = {fingerprint, card.plan_fingerprint if card else None} - {None}
    if known:
        return plan.fingerprint in known
    specs = {part_path(output, spec.name): spec.fingerprint for spec in plan.specs}
    return all(specs.get(path) == found for path, found in part_fingerprints(output).items())


def _rejects(output: str) -> list[Reject]:
    try:
        data = storage.read_bytes(storage.join(output, "rejects.parquet"))
        return [Reject(**row) for row in storage.parse_table(data, SCHEMA).to_pylist()]
    except storage.DocumentError:
        return []  # for `verify` to find


def _check_buckets(manifest: Manifest) -> None:
    """Fail before any work when a bucket that the manifest names cannot be read."""
    uris = manifest.clips["uri"]
    remote = uris.filter(pc.match_substring(uris, "://"))
    buckets = pc.replace_substring_regex(remote, r"^([a-z0-9]+://[^/]+/).*", r"\1")
    for bucket in pc.unique(buckets).to_pylist():
        samples = remote.filter(pc.equal(buckets, bucket)).slice(0, _SAMPLES_PER_BUCKET)
        storage.check_readable(samples.to_pylist())
