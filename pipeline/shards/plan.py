"""Which clip goes into which shard: a pure function of manifest, settings and earlier plan.

Within a split the clips are ordered by a hash of their ids, so that every shard mixes the classes,
and cut into shards of nearly equal size. Clips of one Parquet row group stay together, so that it
is read once. Clips added later go into new shards: a plan only grows. What was planned stays as it
was built, also where the manifest is corrected later; `usage` tells what of it is still used.

On storage a plan is a JSON document that lists its shards, and Parquet files with the clips, of up
to `_SHARDS_PER_FILE` row groups, one per shard: a task reads its row group and a small footer.
While it is made or read, its clips lie in a stored table: millions never are in memory at once.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.manifest import SCHEMA, Manifest
from pipeline.manifest.splits import check_split
from pipeline.shards.hash_order import HashOrder, Ordered
from pipeline.shards.match import Rows, match
from pipeline.shards.settings import PrepareSettings
from pipeline.storage.stored_table import BATCH_ROWS, StoredTable, batches
from pipeline.storage.table_hashes import RangeHasher, content_hash

FORMAT_VERSION = 3
"""Changes whenever the same manifest and settings would give other tars, index or card."""
READ_VERSIONS = (2, FORMAT_VERSION)
"""Those of data sets that can be read. Before version 3 the index had no checksums of clips."""


LIMITS = ("max_duration_s", "max_file_bytes")
"""Settings that may be raised later: only clips that they rejected are then tried again."""

_MIN_SHARDS = 16
_MIN_CLIPS_PER_SHARD = 25
_SHARDS_PER_FILE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """A shard to build: its name, and where the plan's files hold its clips."""

    name: str
    plan_file: storage.Count
    row_group: storage.Count
    num_clips: storage.Count
    fingerprint: str
    """Hash of the shard's clips and the settings: a finished shard with another one is outdated."""
    max_duration_s: storage.Amount | None = None
    """The limit that its clips are tried with, if it was raised since the first shards were built;
    so is `max_file_bytes`."""
    max_file_bytes: storage.Count | None = None

    @property
    def split(self) -> str:
        """The split that all its clips belong to."""
        return self.name.rpartition("-")[0]

    def settings(self, basis: PrepareSettings) -> PrepareSettings:
        """The settings of the shard."""
        limits = {name: getattr(self, name) for name in LIMITS}
        raised = {name: limit for name, limit in limits.items() if limit is not None}
        return replace(basis, decode=replace(basis.decode, **raised)) if raised else basis

    def to_json(self) -> dict[str, Any]:
        """The entry of the document; without limits that were not raised."""
        fields = asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


_Fingerprint = Callable[[ShardSpec, str], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What all shards of a data set have in common: it never mixes shards of two bases."""

    format_version: int
    settings: PrepareSettings
    labels: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document; without `store` if fbanks are stored."""
        document = asdict(self)
        if self.settings.store == "fbank":
            del document["settings"]["store"]
        return document

    def canonical(self) -> str:
        """The text that goes into fingerprints."""
        return json.dumps(self.to_json(), sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All shards, and the clips in the order of the shards."""

    specs: tuple[ShardSpec, ...]
    clips: StoredTable
    basis: Basis
    made_from: object = field(default=None, compare=False, repr=False)
    """The clips of the manifest that the last shards were just planned from, if they were."""
    new_rows: Rows = field(default_factory=lambda: np.empty(0, np.int64), compare=False, repr=False)
    """For each clip of these shards its row there."""

    @property
    def names(self) -> list[str]:
        """Names of the shards."""
        return [spec.name for spec in self.specs]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the shards."""
        return _sha256(self.basis.canonical(), *[spec.fingerprint for spec in self.specs])


class DamagedPlanError(UserError):
    """A plan was written, but one of its files is missing or damaged."""

    def __init__(self, path: str, error: Exception, fingerprint: str | None = None) -> None:
        is_missing = isinstance(error, FileNotFoundError)
        what = error.what if isinstance(error, UserError) else str(error)
        self.fault = "is missing" if is_missing else f"is damaged ({what})"
        self.fingerprint = fingerprint
        """Of the plan as it was written; None if unknown."""
        super().__init__(
            path,
            f"the plan of this data set {self.fault}, and this manifest does not reproduce it",
            "restore the file, use the manifest that the data set was made from, or give "
            "another --out",
        )
        self.args = (path, error, fingerprint)


def make_plan(
    manifest: Manifest,
    settings: PrepareSettings,
    before: Plan | None = None,
    again: Sequence[str] = (),
    *,
    rows_before: Rows | None = None,
    partition_rows: int = BATCH_ROWS,
) -> Plan:
    """Assign every clip of the manifest to a shard.

    Args:
        manifest: the clips.
        settings: how to prepare them.
        before: a plan with the same settings, but for limits; its shards stay, and clips that it
            lacks, or has with other audio, go into new ones.
        again: ids of clips that go into new shards though the plan has them.
        rows_before: what `match` finds for the plan before, if it is known.
        partition_rows: about how many clips are sorted at once.

    Raises:
        UserError: a split's name cannot be part of a file name.
    """
    basis = before.basis if before else _basis(manifest, settings)
    specs = list(before.specs) if before else []
    if before and rows_before is None:
        rows_before = match(before.clips, manifest.clips)
    new = HashOrder(manifest.clips.num_rows, partition_rows)
    _add_new(new, manifest, again, rows_before)
    if before and not new.num_clips:
        return replace(before, made_from=manifest.clips)
    clips = StoredTable(SCHEMA)
    if before:
        for batch in before.clips.batches():
            clips.append(batch)
    first_numbers = next_numbers(specs)
    num_kept = len(specs)
    limits = _raised_limits(basis, settings)
    fingerprint = _fingerprints(basis)
    first_file = specs[-1].plan_file + 1 if specs else 0
    all_rows: list[Rows] = []
    for split in sorted(new.num_clips):
        check_split(split, "the manifest")
        sizes = shard_sizes(new.num_clips[split], settings.clips_per_shard)
        for cut in _cut(new.read(split), sizes):
            clips.append(cut.clips)
            all_rows.append(cut.rows)
            hasher = _hasher(cut.clips)
            start = 0
            for num_clips in cut.sizes:
                new_index = len(specs) - num_kept
                spec = ShardSpec(
                    name=shard_name(split, first_numbers[split]),
                    plan_file=first_file + new_index // _SHARDS_PER_FILE,
                    row_group=new_index % _SHARDS_PER_FILE,
                    num_clips=num_clips,
                    fingerprint="",
                    **limits,
                )
                clips_hash = hasher.hash(start, start + num_clips)
                specs.append(replace(spec, fingerprint=fingerprint(spec, clips_hash)))
                first_numbers[split] += 1
                start += num_clips
    return Plan(
        specs=tuple(specs),
        clips=clips,
        basis=basis,
        made_from=manifest.clips,
        new_rows=np.concatenate([np.empty(0, np.int64), *all_rows]),
    )


def _add_new(
    order: HashOrder, manifest: Manifest, again: Sequence[str], rows_before: Rows | None
) -> None:
    """Add the clips that no earlier shard is for, with their rows of the manifest."""
    is_new = np.ones(manifest.clips.num_rows, dtype=bool)
    if rows_before is not None:
        is_new[rows_before[rows_before >= 0]] = False
    ids = pa.array(again, pa.string())
    start = 0
    for batch in batches(manifest.clips):
        rows = np.arange(start, start + batch.num_rows)
        start += batch.num_rows
        wanted = is_new[rows]
        if len(ids):
            wanted |= pc.is_in(batch["id"], ids).to_numpy()
        order.add(batch.filter(pa.array(wanted)), rows[wanted])


@dataclass(frozen=True, slots=True)
class _Cut:
    """Clips of neighbouring shards, and the size of each shard."""

    clips: pa.Table
    rows: Rows
    sizes: list[int]


def _cut(ordered: Iterator[Ordered], sizes: list[int]) -> Iterator[_Cut]:
    """Cut tables of any length into whole shards; what is left over goes before the next table."""
    ends = np.cumsum(sizes)
    clips, rows = SCHEMA.empty_table(), np.empty(0, np.int64)
    done = num_done = 0
    for part in ordered:
        clips = pa.concat_tables([clips, part.clips]).combine_chunks()
        rows = np.concatenate([rows, part.rows])
        last = int(np.searchsorted(ends, num_done + len(rows), side="right"))
        num_clips = int(sum(sizes[done:last]))
        if num_clips:
            yield _Cut(clips.slice(0, num_clips), rows[:num_clips], sizes[done:last])
        clips, rows = clips.slice(num_clips), rows[num_clips:]
        done, num_done = last, num_done + num_clips


def shard_name(split: str, number: int) -> str:
    """The name of a shard."""
    return f"{split}-{number:05d}"


def next_numbers(specs: Sequence[ShardSpec]) -> Counter[str]:
    """The number of the next shard, by split; 0 for splits without one."""
    numbers: Counter[str] = Counter()
    for spec in specs:
        numbers[spec.split] = max(numbers[spec.split], int(spec.name.rpartition("-")[2]) + 1)
    return numbers


def with_fingerprint(spec: ShardSpec, basis: Basis, clips: pa.Table) -> ShardSpec:
    """The shard with its fingerprint if it is built from these clips."""
    clips_hash = _hasher(clips).hash(0, clips.num_rows)
    return replace(spec, fingerprint=_fingerprints(basis)(spec, clips_hash))


def rearranged(before: Plan, specs: Sequence[ShardSpec], clips: StoredTable) -> Plan:
    """A plan of other shards in place of an earlier one, in files of other names."""
    first_file = before.specs[-1].plan_file + 1
    placed = (
        replace(
            spec,
            plan_file=first_file + number // _SHARDS_PER_FILE,
            row_group=number % _SHARDS_PER_FILE,
        )
        for number, spec in enumerate(specs)
    )
    return Plan(specs=tuple(placed), clips=clips, basis=before.basis)


def setting_differences(before: Plan, settings: PrepareSettings) -> list[tuple[str, Any, Any]]:
    """Settings that a plan cannot have any more: the name, the old value and the new one."""
    old = _flat(before.basis)
    new = _flat(replace(before.basis, format_version=FORMAT_VERSION, settings=settings))
    for name in LIMITS:
        old[name] = max(old[name], *(getattr(spec, name) or 0 for spec in before.specs))
        new[name] = new[name] if new[name] < old[name] else old[name]  # it may be raised
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]


def write_plan(
    plan: Plan,
    folder: str,
    manifest: Manifest,
    before: Plan | None = None,
    settings: PrepareSettings | None = None,
) -> None:
    """Write the files of a plan that are new, and last the document that lists the shards.

    Until then the document lists those of the plan before.

    Args:
        plan: what to write.
        folder: where to write it.
        manifest: what the data set is prepared from now, for `planned_fingerprint`.
        before: the plan already written there, which this one extends.
        settings: those of this run, for `planned_fingerprint`; None: those of the plan.
    """
    write_plan_clips(plan, folder, before)
    document = {
        "basis": plan.basis.to_json(),
        "manifest": content_hash(manifest.clips),
        "fingerprint": plan.fingerprint,
        "specs": [spec.to_json() for spec in plan.specs],
    }
    if settings and settings != plan.basis.settings:
        document["settings"] = asdict(settings)
    if list(manifest.labels) != plan.basis.labels:
        document["labels"] = list(manifest.labels)
    storage.write_json(_document_path(folder), document)


def write_plan_clips(plan: Plan, folder: str, before: Plan | None = None) -> None:
    """Write the files with the clips of a plan, but for those that an extended one has there."""
    num_specs = len(before.specs) if before else 0
    start = sum(spec.num_clips for spec in plan.specs[:num_specs])
    for first in range(num_specs, len(plan.specs), _SHARDS_PER_FILE):
        specs = plan.specs[first : first + _SHARDS_PER_FILE]
        buffer = io.BytesIO()
        with pq.ParquetWriter(
            buffer, plan.clips.schema, compression="zstd", write_statistics=False
        ) as writer:
            for spec in specs:
                rows = plan.clips.slice(start, spec.num_clips)
                writer.write_table(rows, row_group_size=spec.num_clips)
                start += spec.num_clips
        storage.write_bytes(_clips_path(folder, specs[0].plan_file), buffer.getvalue())


def remove_other_clips(plan: Plan, folder: str) -> None:
    """Remove the files with clips of an earlier plan."""
    kept = {_clips_path(folder, spec.plan_file) for spec in plan.specs}
    for path in storage.list_files(storage.join(folder, "plan")):
        if path not in kept and re.fullmatch(r"\d{5,}\.parquet", path.rpartition("/")[2]):
            storage.remove(path)


def planned_fingerprint(folder: str, manifest: Manifest, settings: PrepareSettings) -> str | None:
    """The written plan's fingerprint if it was written for these; saves planning again."""
    try:
        document = _read_document(folder)
    except DamagedPlanError:
        return None
    if document is None:
        return None
    labels = document.basis.labels if document.labels is None else document.labels
    written = document.settings or document.basis.settings
    is_same = replace(document.basis, labels=labels, settings=written) == _basis(manifest, settings)
    is_same = is_same and document.manifest == content_hash(manifest.clips)
    return document.fingerprint if is_same else None


def read_plan(folder: str) -> Plan | None:
    """The plan written there; None if there is none.

    Raises:
        DamagedPlanError: a file of it is missing or damaged.
    """
    document = _read_document(folder)
    if document is None:
        return None
    clips = StoredTable(SCHEMA)
    fingerprint = _fingerprints(document.basis)
    for number, specs in groupby(document.specs, key=lambda spec: spec.plan_file):
        path = _clips_path(folder, number)
        try:
            table = storage.read_table(path, SCHEMA)
            _check_clips(table, list(specs), fingerprint)
        except (FileNotFoundError, ValueError, storage.NoFileError) as error:
            raise DamagedPlanError(path, error, document.fingerprint) from error
        clips.append(table)
    plan = Plan(specs=document.specs, clips=clips, basis=document.basis)
    if plan.fingerprint != document.fingerprint:
        fault = ValueError("does not match its fingerprint")
        raise DamagedPlanError(_document_path(folder), fault)
    return plan


def _check_clips(clips: pa.Table, specs: list[ShardSpec], fingerprint: _Fingerprint) -> None:
    start = 0
    hasher = _hasher(clips)
    for spec in specs:
        end = min(start + spec.num_clips, clips.num_rows)
        if fingerprint(spec, hasher.hash(start, end)) != spec.fingerprint:
            raise ValueError(f"the clips of {spec.name} do not match their fingerprint")
        start = end


def read_shard_clips(folder: str, spec: ShardSpec) -> pa.Table:
    """The clips of one shard, from the written plan."""
    path = _clips_path(folder, spec.plan_file)
    with storage.explained(path):
        return storage.with_retries(_read_row_group, path, spec.row_group)


def _read_row_group(path: str, row_group: int) -> pa.Table:
    with storage.open_binary(path) as file:
        return pq.ParquetFile(file).read_row_group(row_group)


def shard_sizes(num_clips: int, clips_per_shard: int) -> list[int]:
    """Clips in each shard: at most `clips_per_shard`, differing by at most one.

    A small data set is cut finer, into up to 16 shards of at least 25 clips, so that several CPUs
    can build it; the number must not depend on how many CPUs there are.
    """
    num_shards = max(
        -(-num_clips // clips_per_shard), min(_MIN_SHARDS, num_clips // _MIN_CLIPS_PER_SHARD), 1
    )
    return [num_clips // num_shards + (i < num_clips % num_shards) for i in range(num_shards)]


def _fingerprints(basis: Basis) -> _Fingerprint:
    """Gives the fingerprint of a shard and the hash of its clips."""

    @lru_cache  # with many classes it is a long text, and the same for nearly all shards
    def text(settings: PrepareSettings) -> str:
        return replace(basis, settings=settings).canonical()

    return lambda spec, clips_hash: _sha256(text(spec.settings(basis.settings)), clips_hash)


def _hasher(clips: pa.Table) -> RangeHasher:
    return RangeHasher(_without_index_columns(clips))


def _raised_limits(basis: Basis, settings: PrepareSettings) -> dict[str, Any]:
    """The limits that differ from those of the first shards."""
    limits = {name: getattr(settings.decode, name) for name in LIMITS}
    return {
        name: limit
        for name, limit in limits.items()
        if limit != getattr(basis.settings.decode, name)
    }


def _without_index_columns(clips: pa.Table) -> pa.Table:
    """The clips without columns that only the index has: they may change without a rebuild."""
    return clips.drop_columns(["common"])


def _basis(manifest: Manifest, settings: PrepareSettings) -> Basis:
    return Basis(format_version=FORMAT_VERSION, settings=settings, labels=list(manifest.labels))


def _flat(basis: Basis) -> dict[str, Any]:
    """The version and the settings as one flat mapping, to compare them name by name."""
    flat: dict[str, Any] = {"format_version": basis.format_version}
    for name, value in asdict(basis.settings).items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def _document_path(folder: str) -> str:
    return storage.join(folder, "plan.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """`plan.json`."""

    basis: Basis
    manifest: str
    """Hash of the manifest that the data set was prepared from last."""
    fingerprint: str
    specs: tuple[ShardSpec, ...]
    labels: list[str] | None = None
    """The vocabulary of that manifest; None: the basis has it."""
    settings: PrepareSettings | None = None
    """Those of the last run; None: the basis has them."""


def _read_document(folder: str) -> _Document | None:
    path = _document_path(folder)
    try:
        document = storage.parse_document(storage.read_bytes(path), _Document)
        version = document.basis.format_version
        if version not in READ_VERSIONS:
            raise storage.DocumentError(
                f"has format version {version}, this program reads "
                f"{' and '.join(map(str, READ_VERSIONS))}"
            )
        if not document.specs:
            raise storage.DocumentError("lists no shard")
        return document
    except FileNotFoundError:
        return None
    except (storage.DocumentError, storage.NoFileError) as error:
        raise DamagedPlanError(path, error) from error


def _clips_path(folder: str, number: int) -> str:
    return storage.join(folder, "plan", f"{number:05d}.parquet")


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
