"""From finished shards to a complete data set: index, ledger, card, summary. Runs without Ray.

Clips come from the part files, in the order of the plan, so the result does not depend on who built
which shard, or when; labels, splits and folds come from the manifest, which may be newer. The card
is written last. The part files stay, so that a later run can retry rejected clips.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.rejects import Reject, check_share, count_reasons, to_table
from pipeline.dataset.card import (
    Card,
    Corrections,
    checksum_fault,
    common_fingerprint,
    decode_card,
    make_card,
    manifest_fingerprint,
)
from pipeline.dataset.prepare_summary import PrepareSummary, write_summary
from pipeline.dataset.prepared import INDEX_ROWS_PER_GROUP, card_path, index_path, ledger_path
from pipeline.dataset.resume import remove_unfinished
from pipeline.dataset.source_rates import below, count_rates, low_rate_note
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.shards.build import BuildJob
from pipeline.shards.match import LABELLING, differing
from pipeline.shards.parts import (
    INDEX_SCHEMA,
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

_READERS = 16
_FADED_DB = 20.0
"""So much level lost between file and clip is worth a note."""
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


def any_is_back(rejects: Iterable[Reject]) -> bool:
    """Whether a file that was missing or refused is there now."""

    def is_there(uri: str) -> bool:
        try:
            return storage.exists(uri)
        except UserError:
            return False

    return any(is_there(reject.uri) for reject in rejects if reject.may_return)


def finished_parts(
    plan: Plan,
    output: str,
    *,
    usage: Usage,
    retry_rejects: bool = False,
    look_again: bool = False,
    damaged: frozenset[str] = frozenset(),
) -> dict[str, Part]:
    """Parts of shards that need not be rebuilt: same clips and settings, and the tar exists.

    Args:
        plan: the shards.
        output: the data set's folder.
        usage: which of their clips the manifest uses; rejects among the others do not count.
        retry_rejects: treat shards with rejected clips as unfinished.
        look_again: treat shards as unfinished if files that were missing or refused are there now.
        damaged: shards that `verify` found damaged.
    """
    sizes = storage.file_sizes(output)
    paths = {spec: part_path(output, spec.name) for spec in plan.specs}

    def read(spec: ShardSpec) -> Part | None:
        if paths[spec] not in sizes or spec.name in damaged:
            return None
        try:
            part = read_part(paths[spec])
        except (ValueError, OSError, storage.NoFileError):
            return None  # Damaged: the shard is rebuilt.
        if part.fingerprint != spec.fingerprint:
            return None
        rejects = usage.rejects(spec.name, part)
        if (retry_rejects and rejects) or (look_again and any_is_back(rejects)):
            return None
        if part.tar and sizes.get(storage.join(output, part.tar.name)) != part.tar.size_bytes:
            return None
        return part

    with ThreadPoolExecutor(_READERS) as pool:
        parts = pool.map(read, plan.specs)
        return {spec.name: part for spec, part in zip(plan.specs, parts, strict=True) if part}


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
    parts = finished_parts(plan, job.output, usage=usage)
    missing = [name for name in plan.names if name not in parts and usage.num_used(name)]
    if missing:
        raise UserError(job.output, f"shards {missing[:3]} are missing", "run prepare again")
    ordered = {name: parts[name] for name in plan.names if name in parts}
    rejects = [reject for name, part in ordered.items() for reject in usage.rejects(name, part)]
    reasons = count_reasons(rejects)
    ledger = storage.encode_table(to_table(rejects))
    begin()
    storage.write_bytes(ledger_path(job.output), ledger)
    num_clips = manifest.clips.num_rows
    check_share(reasons, num_clips, max_share=max_reject_share, ledger=ledger_path(job.output))

    tars = [part.tar for part in ordered.values() if part.tar]
    built_index = _used_rows(ordered, usage, index_schema(job.settings.store))
    index = _as_in(manifest, built_index)
    index_bytes = storage.encode_table(index, INDEX_ROWS_PER_GROUP)
    storage.write_bytes(index_path(job.output), index_bytes)
    rate_hz = job.settings.fbank.sample_rate_hz
    rates, is_complete = count_rates(ordered.values(), index, rate_hz)
    card = make_card(
        settings=job.settings,
        labels=manifest.labels,
        index=index,
        reasons=reasons,
        low_rates=below(rates, rate_hz),
        tars=tars,
        plan_fingerprint=plan.fingerprint,
        corrections=_corrections(index, built_index, tars, manifest) if usage.is_changed else None,
        coverage=manifest.coverage,
        common_fingerprint=common_fingerprint(manifest),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        rejects_sha256=hashlib.sha256(ledger).hexdigest(),
    )
    every_part = [*ordered.values()]
    summary = _summary(plan, job.output, card, index, every_part, built=built, wall_s=elapsed_s())
    summary = replace(summary, changes=changes, file_rates=rates if is_complete else {})
    write_summary(summary)
    _remove_strays(job.output, plan, tars)
    remove_unfinished(job.output)
    storage.write_json(card_path(job.output), card.to_json())
    return summary


def _used_rows(parts: dict[str, Part], usage: Usage, schema: pa.Schema) -> pa.Table:
    """The rows of the index that the manifest uses, as the shards were built."""
    tables = [schema.empty_table()]
    for name, part in parts.items():
        is_used = usage.rows_of(name, part.index["id"]) >= 0
        tables.append(part.index if is_used.all() else part.index.filter(pa.array(is_used)))
    return pa.concat_tables(tables)


def _as_in(manifest: Manifest, index: pa.Table) -> pa.Table:
    """The index with the labels, splits, folds and common subset of the manifest."""
    rows = pc.index_in(index["id"], manifest.clips["id"])
    for name in (*LABELLING, "common"):
        column = INDEX_SCHEMA.get_field_index(name)
        values = manifest.clips[name].take(rows)
        index = index.set_column(column, INDEX_SCHEMA.field(column), values)
    return index


def _corrections(
    index: pa.Table, built_index: pa.Table, tars: list[TarEntry], manifest: Manifest
) -> Corrections:
    is_outdated = [differing(index[name], built_index[name]) for name in LABELLING]
    return Corrections(
        num_outdated=int(np.logical_or.reduce(is_outdated).sum()),
        num_unused=sum(tar.num_clips for tar in tars) - index.num_rows,
        manifest_fingerprint=manifest_fingerprint(manifest),
    )


def _summary(
    plan: Plan,
    output: str,
    card: Card,
    index: pa.Table,
    parts: list[Part],
    *,
    built: set[str],
    wall_s: float,
) -> PrepareSummary:
    lost_db = pc.subtract(index["file_level_dbfs"], index["level_dbfs"])  # NaN for silent files
    num_clips_built = sum(spec.num_clips for spec in plan.specs if spec.name in built)
    return PrepareSummary(
        output=output,
        num_clips=card.num_clips,
        num_rejects=card.rejects.num,
        rejects_by_reason=card.rejects.by_reason,
        num_clipped_clips=card.clipped.num_clips if card.clipped else 0,
        num_repaired_clips=index.num_rows - index["repaired"].null_count,
        low_rate_note=low_rate_note(card.low_rates, card.num_clips, card.fbank.sample_rate_hz),
        num_faded_clips=pc.sum(pc.greater_equal(lost_db, _FADED_DB)).as_py() or 0,
        num_shards=len(card.shards),
        num_shards_built=len(built),
        num_clips_built=num_clips_built,
        size_bytes=sum(tar.size_bytes for tar in card.shards),
        fetched_bytes=sum(part.fetched_bytes for part in parts),
        audio_s=sum(split.duration_s for split in card.splits.values()),
        wall_s=wall_s,
        clips_per_s=num_clips_built / wall_s,
        stages_s={stage: sum(part.stages_s[stage] for part in parts) for stage in STAGES},
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
