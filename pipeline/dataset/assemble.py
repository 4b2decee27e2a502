"""From finished shards to a complete data set: index, ledger, card, summary. Runs without Ray.

Clips come from the part files, in the order of the plan, so the result does not depend on who built
which shard, or when; labels, splits and folds come from the manifest, which may be newer. Some part
files are read at a time, and their rows go straight to the index. The card is written last. The
part files stay, so that a later run can retry rejected clips.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa

from pipeline import storage
from pipeline.audio.rejects import Ledger, Reject, check_share, count_reasons
from pipeline.dataset.card import (
    Card,
    Corrections,
    checksum_fault,
    common_fingerprint,
    decode_card,
    make_card,
    manifest_fingerprint,
)
from pipeline.dataset.index_writer import IndexWriter
from pipeline.dataset.labelling import Labelling
from pipeline.dataset.prepare_summary import PrepareSummary, write_summary
from pipeline.dataset.prepared import card_path, index_path, ledger_path
from pipeline.dataset.resume import remove_unfinished
from pipeline.dataset.source_rates import RateCounts, below, low_rate_note
from pipeline.dataset.totals import IndexTotals
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.job import BuildJob
from pipeline.shards.parts import (
    STAGES,
    Part,
    TarEntry,
    index_schema,
    part_names,
    part_path,
    read_part,
    work_folder,
)
from pipeline.shards.plan import Plan, ShardSpec, remove_other_clips
from pipeline.shards.usage import Usage
from pipeline.threads import ahead

_READERS = 16
_LOOKS = 8
"""Missing files that each of them looks for at once."""
_PARTS_AHEAD = 64
"""Part files that are read before their turn: each is some 100 KB, or 1 MB in memory."""
_PARTS_AT_ONCE = 32
"""Part files whose rows are counted and written together."""

Result = TypeVar("Result")

_SHARD_TAR = re.compile(r"[A-Za-z0-9_-]+-\d{5,}\.tar")


def read_card(output: str) -> Card | None:
    """The card of a complete data set; None if it is missing, or damaged and so to be rewritten.

    Raises:
        UserError: it has another format version.
    """
    path = card_path(output)
    try:
        data = storage.read_bytes(path)
    except (FileNotFoundError, storage.NoFileError):
        return None
    return None if checksum_fault(data) else decode_card(data, path)


def is_intact(card: Card, output: str) -> bool:
    """Whether a listing has the index, the ledger and each shard of the card at its full size.

    The card does not have the sizes of index and ledger, but whatever else is in their place, such
    as a pipe, is listed with 0 bytes.
    """
    sizes = storage.file_sizes(output)
    tables = ("index.parquet", "rejects.parquet")
    return all(sizes.get(storage.join(output, name)) for name in tables) and all(
        sizes.get(storage.join(output, tar.name)) == tar.size_bytes for tar in card.shards
    )


def any_is_there(uris: Iterable[str], *, threads: int) -> bool:
    """Whether one of some files is there, and not refused; threads ask for as many at once."""

    def is_there(uri: str) -> bool:
        try:
            return storage.exists(uri)
        except UserError:
            return False

    return any(ahead(is_there, uris, threads=threads, num_ahead=2 * threads))


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What is kept of a part file while others are read: its index may have millions of rows."""

    tar: TarEntry | None
    over_limits: tuple[Reject, ...]
    """Clips that the manifest uses, and that were rejected for a limit."""


def finished_parts(
    plan: Plan,
    output: str,
    *,
    usage: Usage,
    retry_rejects: bool = False,
    look_again: bool = False,
    damaged: frozenset[str] = frozenset(),
) -> dict[str, Finished]:
    """Shards that need not be rebuilt: same clips and settings, and the tar exists.

    Args:
        plan: the shards.
        output: the data set's folder.
        usage: which of their clips the manifest uses; rejects among the others do not count.
        retry_rejects: treat shards with rejected clips as unfinished.
        look_again: treat shards as unfinished if files that were missing or refused are there now.
        damaged: shards that `verify` found damaged.
    """

    def check(spec: ShardSpec, part: Part) -> Finished | None:
        rejects = usage.rejects(spec.name, part)
        if retry_rejects and rejects:
            return None
        may_be_there = [reject.uri for reject in rejects if reject.may_return]
        if look_again and any_is_there(may_be_there, threads=_LOOKS):
            return None
        over_limits = tuple(reject for reject in rejects if reject.limit)
        return Finished(tar=part.tar, over_limits=over_limits)

    specs = [spec for spec in plan.specs if spec.name not in damaged]
    return {spec.name: finished for spec, finished in _from_parts(specs, output, check)}


def _from_parts(
    specs: Sequence[ShardSpec], output: str, take: Callable[[ShardSpec, Part], Result | None]
) -> Iterator[tuple[ShardSpec, Result]]:
    """What is taken from the part file of each shard, in order.

    Left out are shards whose part file is missing, damaged or outdated, or of which None is taken.
    """
    sizes = storage.file_sizes(output)

    def read(spec: ShardSpec) -> Result | None:
        path = part_path(output, spec.name)
        if path not in sizes:
            return None
        try:
            part = read_part(path)
        except (ValueError, OSError, storage.NoFileError):
            return None  # Damaged: the shard is rebuilt.
        if part.fingerprint != spec.fingerprint:
            return None
        if part.tar and sizes.get(storage.join(output, part.tar.name)) != part.tar.size_bytes:
            return None
        return take(spec, part)

    results = ahead(read, specs, threads=_READERS, num_ahead=_PARTS_AHEAD)
    for spec, result in zip(specs, results, strict=True):
        if result is not None:
            yield spec, result


@dataclass(kw_only=True, slots=True)
class _Collected:
    """What the card and the summary say, collected from the part files."""

    totals: IndexTotals = field(default_factory=IndexTotals)
    rates: RateCounts
    rejects: Ledger = field(default_factory=Ledger)
    tars: list[TarEntry] = field(default_factory=list)
    num_outdated: int = 0
    fetched_bytes: int = 0
    stages_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


def assemble(
    plan: Plan,
    manifest: Manifest,
    job: BuildJob,
    *,
    built: set[str],
    max_reject_share: float,
    elapsed_s: Callable[[], float],
    changes: str = "",
    begin: Callable[[], None] = lambda: None,
) -> PrepareSummary:
    """Write the ledger, check the share of rejected clips, then write the index and the card.

    Args:
        plan: all its shards that the manifest uses must be finished.
        manifest: the clips, with their labels, splits and folds.
        job: the output folder and the settings.
        built: names of the shards that this run built.
        max_reject_share: the largest share of clips that may be rejected.
        elapsed_s: how long the run has taken.
        changes: what the run changes in an earlier data set.
        begin: called before anything is written, once all parts are read.

    Raises:
        UserError: a shard is missing; or too many clips were rejected: then there is a ledger, but
            no card.
    """
    usage = Usage(plan, manifest)
    with IndexWriter(index_path(job.output), index_schema(job.settings.store)) as index:
        found = _collect(plan, manifest, job, usage, index)
        rejects = found.rejects.table()
        reasons = count_reasons(rejects)
        ledger = storage.encode_table(rejects)
        begin()
        storage.write_bytes(ledger_path(job.output), ledger)
        num_clips = manifest.clips.num_rows
        check_share(reasons, num_clips, max_share=max_reject_share, ledger=ledger_path(job.output))
        index.commit()
    rate_hz = job.settings.fbank.sample_rate_hz
    rates = found.rates.counts(found.totals.num_clips)
    corrections = Corrections(
        num_outdated=found.num_outdated,
        num_unused=sum(tar.num_clips for tar in found.tars) - found.totals.num_clips,
        manifest_fingerprint=manifest_fingerprint(manifest) if usage.is_changed else "",
    )
    card = make_card(
        settings=job.settings,
        labels=manifest.labels,
        totals=found.totals,
        reasons=reasons,
        low_rates=below(rates, rate_hz),
        tars=found.tars,
        plan_fingerprint=plan.fingerprint,
        corrections=corrections if usage.is_changed else None,
        coverage=manifest.coverage,
        common_fingerprint=common_fingerprint(manifest),
        index_sha256=index.sha256,
        rejects_sha256=hashlib.sha256(ledger).hexdigest(),
    )
    summary = _summary(plan, job.output, card, found, built=built, wall_s=elapsed_s())
    rates = rates if found.rates.is_complete else {}
    write_summary(replace(summary, changes=changes, file_rates=rates))
    _remove_strays(job.output, plan, found.tars)
    remove_unfinished(job.output)
    storage.write_json(card_path(job.output), card.to_json())
    return replace(summary, changes=changes, file_rates=rates)


def _collect(
    plan: Plan, manifest: Manifest, job: BuildJob, usage: Usage, index: IndexWriter
) -> _Collected:
    """Write the rows of all shards into the index, in the order of the plan.

    Raises:
        UserError: a shard is missing.
    """
    found = _Collected(rates=RateCounts(job.settings.fbank.sample_rate_hz))
    labelling = Labelling(usage, manifest)
    finished = set[str]()
    waiting = list[pa.Table]()

    def flush() -> None:
        if waiting:
            rows = pa.concat_tables(waiting)
            index.write(rows)
            found.totals.add(rows)
            waiting.clear()

    for spec, part in _from_parts(plan.specs, job.output, lambda _, part: part):
        finished.add(spec.name)
        found.rejects.add(usage.rejects(spec.name, part))
        found.fetched_bytes += part.fetched_bytes
        for stage in STAGES:
            found.stages_s[stage] += part.stages_s[stage]
        rows, num_outdated = labelling.apply(spec.name, part.index)
        found.num_outdated += num_outdated
        if part.tar:
            found.tars.append(part.tar)
            found.rates.add(part, rows["id"])
        if rows.num_rows:
            waiting.append(rows)
        if len(waiting) >= _PARTS_AT_ONCE:
            flush()
    flush()
    missing = [name for name in plan.names if name not in finished and usage.num_used(name)]
    if missing:
        raise UserError(job.output, f"shards {missing[:3]} are missing", "run prepare again")
    return found


def _summary(
    plan: Plan, output: str, card: Card, found: _Collected, *, built: set[str], wall_s: float
) -> PrepareSummary:
    num_clips_built = sum(spec.num_clips for spec in plan.specs if spec.name in built)
    return PrepareSummary(
        output=output,
        num_clips=card.num_clips,
        num_rejects=card.rejects.num,
        rejects_by_reason=card.rejects.by_reason,
        num_clipped_clips=card.clipped.num_clips if card.clipped else 0,
        num_repaired_clips=found.totals.num_repaired,
        low_rate_note=low_rate_note(card.low_rates, card.num_clips, card.fbank.sample_rate_hz),
        num_faded_clips=found.totals.num_faded,
        num_shards=len(card.shards),
        num_shards_built=len(built),
        num_clips_built=num_clips_built,
        size_bytes=sum(tar.size_bytes for tar in card.shards),
        fetched_bytes=found.fetched_bytes,
        audio_s=sum(split.duration_s for split in card.splits.values()),
        wall_s=wall_s,
        clips_per_s=num_clips_built / wall_s,
        stages_s=found.stages_s,
    )


def _remove_strays(output: str, plan: Plan, tars: list[TarEntry]) -> None:
    """Remove what an earlier plan left: tars, part files, and lists of clips."""
    kept = {storage.join(output, tar.name) for tar in tars}
    for path in storage.list_files(storage.join(output, "shards")):
        if path not in kept and _SHARD_TAR.fullmatch(path.rpartition("/")[2]):
            storage.remove(path)
    remove_other_clips(plan, work_folder(output))
    names = set(plan.names)
    for path, name in part_names(output).items():
        if name not in names:
            storage.remove(path)
