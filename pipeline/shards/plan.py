"""Which clip goes into which shard: a pure function of manifest, settings and earlier plan.

Within a split the clips are ordered by a hash of their ids, so that every shard mixes the classes,
and cut into shards of nearly equal size. Clips of one Parquet row group stay together, so that it
is read once. Clips added later go into new shards: a plan only grows. What was planned stays as it
was built, also where the manifest is corrected later; `usage` tells what of it is still used.

On storage a plan is a JSON document that lists its shards, and Parquet files with the clips, of up
to `_SHARDS_PER_FILE` row groups, one per shard: a task reads its row group and a small footer.
"""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.manifest import SCHEMA, Manifest
from pipeline.manifest.splits import check_split
from pipeline.shards.match import match
from pipeline.shards.settings import PrepareSettings

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
    clips: pa.Table
    basis: Basis

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
) -> Plan:
    """Assign every clip of the manifest to a shard.

    Args:
        manifest: the clips.
        settings: how to prepare them.
        before: a plan with the same settings, but for limits; its shards stay, and clips that it
            lacks, or has with other audio, go into new ones.
        again: ids of clips that go into new shards though the plan has them.

    Raises:
        UserError: a split's name cannot be part of a file name.
    """
    basis = before.basis if before else _basis(manifest, settings)
    specs = list(before.specs) if before else []
    tables = [before.clips] if before else []
    clips = manifest.clips
    if before:
        is_new = np.ones(clips.num_rows, dtype=bool)
        rows = match(before.clips, clips)
        is_new[rows[rows >= 0]] = False
        is_new |= pc.is_in(clips["id"], pa.array(again, pa.string())).to_numpy()
        clips = clips.filter(pa.array(is_new))
    first_numbers = next_numbers(specs)
    num_kept = len(specs)
    limits = _raised_limits(basis, settings)
    first_file = specs[-1].plan_file + 1 if specs else 0
    for split in sorted(pc.unique(clips["split"]).to_pylist()):
        check_split(split, "the manifest")
        ordered = _in_hash_order(clips.filter(pc.equal(clips["split"], split)))
        start = 0
        sizes = shard_sizes(ordered.num_rows, settings.clips_per_shard)
        for number, num_clips in enumerate(sizes, start=first_numbers[split]):
            new_index = len(specs) - num_kept
            shard_clips = ordered.slice(start, num_clips)
            spec = ShardSpec(
                name=shard_name(split, number),
                plan_file=first_file + new_index // _SHARDS_PER_FILE,
                row_group=new_index % _SHARDS_PER_FILE,
                num_clips=num_clips,
                fingerprint="",
                **limits,
            )
            specs.append(with_fingerprint(spec, basis, shard_clips))
            start += num_clips
        tables.append(ordered)
    return Plan(specs=tuple(specs), clips=pa.concat_tables(tables).combine_chunks(), basis=basis)


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
    return replace(spec, fingerprint=_shard_fingerprint(basis, spec, clips))


def rearranged(before: Plan, specs: Sequence[ShardSpec], clips: pa.Table) -> Plan:
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
    return Plan(specs=tuple(placed), clips=clips.combine_chunks(), basis=before.basis)


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
    tables = []
    for number, specs in groupby(document.specs, key=lambda spec: spec.plan_file):
        path = _clips_path(folder, number)
        try:
            tables.append(storage.read_table(path, SCHEMA))
            _check_clips(tables[-1], list(specs), document.basis)
        except (FileNotFoundError, ValueError, storage.NoFileError) as error:
            raise DamagedPlanError(path, error, document.fingerprint) from error
    clips = pa.concat_tables(tables).combine_chunks()
    plan = Plan(specs=document.specs, clips=clips, basis=document.basis)
    if plan.fingerprint != document.fingerprint:
        fault = ValueError("does not match its fingerprint")
        raise DamagedPlanError(_document_path(folder), fault)
    return plan


def _check_clips(clips: pa.Table, specs: list[ShardSpec], basis: Basis) -> None:
    start = 0
    for spec in specs:
        rows = clips.slice(start, spec.num_clips)
        if _shard_fingerprint(basis, spec, rows) != spec.fingerprint:
            raise ValueError(f"the clips of {spec.name} do not match their fingerprint")
        start += spec.num_clips


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


def _in_hash_order(clips: pa.Table) -> pa.Table:
    """Clips ordered by hashes of their ids; those of one Parquet row group by a hash of that."""
    id_hashes = _hashes(clips["id"])
    group_hashes = id_hashes
    if clips["row_group"].null_count < clips.num_rows:
        groups = pc.binary_join_element_wise(
            clips["uri"], pc.cast(clips["row_group"], pa.string()), "#"
        )
        in_group = pc.is_valid(groups).to_numpy()[:, None]
        group_hashes = np.where(in_group, _hashes(pc.fill_null(groups, "")), id_hashes)
    keys = (id_hashes[:, 1], id_hashes[:, 0], group_hashes[:, 1], group_hashes[:, 0])
    return clips.take(pa.array(np.lexsort(keys)))


def _hashes(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """`[N, 2]`: 128 bits per text."""
    digests = (
        hashlib.blake2b(text.encode(), digest_size=16).digest()
        for chunk in texts.chunks
        for text in chunk.to_pylist()
    )
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def _shard_fingerprint(basis: Basis, spec: ShardSpec, clips: pa.Table) -> str:
    own = replace(basis, settings=spec.settings(basis.settings))
    return _sha256(own.canonical(), content_hash(_without_index_columns(clips)))


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


def content_hash(clips: pa.Table) -> str:
    """Hash of every cell of a table of clips, whatever its layout in memory."""
    digest = hashlib.sha256()
    for column in clips.columns:
        _hash_column(digest, column.combine_chunks())
    return digest.hexdigest()


def _hash_column(digest: Any, column: pa.Array) -> None:
    digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
    if pa.types.is_list(column.type):
        digest.update(pc.fill_null(pc.list_value_length(column), -1).to_numpy().tobytes())
        _hash_column(digest, column.flatten())
    elif pa.types.is_string(column.type):
        filled = pc.fill_null(column, "")
        digest.update(pc.binary_length(filled).to_numpy().tobytes())
        digest.update("".join(filled.to_pylist()).encode())
    else:
        filled = pc.fill_null(column, pa.scalar(0).cast(column.type))
        digest.update(filled.to_numpy(zero_copy_only=False).tobytes())


def _sha256(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
