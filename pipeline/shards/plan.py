"""Which clip goes into which shard: a pure function of manifest, settings and what was there.

Within a split the clips are ordered by a hash of their ids, so that a shard holds a fair mix of
classes, and cut into shards of nearly equal size. Clips of one Parquet row group stay together, so
that it is read once. Clips that come later go into further shards: a plan only grows.

On storage a plan is a JSON document with its shards, and the clips in Parquet files of up to
`_SHARDS_PER_FILE` row groups, one a shard: a task reads its own row group and a small footer.
"""

import hashlib
import io
import json
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.splits import check_split
from pipeline.shards.settings import PrepareSettings

FORMAT_VERSION = 2
"""Changes whenever the same manifest and settings would give other tars, index or card."""


_MIN_SHARDS = 16
_MIN_CLIPS_PER_SHARD = 25
_SHARDS_PER_FILE = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardSpec:
    """One task: the shard's name and where its clips stand in the plan."""

    name: str
    plan_file: int
    row_group: int
    num_clips: int
    fingerprint: str
    """Hash of the shard's clips and of the settings: a finished shard with another is not this."""

    @property
    def split(self) -> str:
        """The split that all its clips belong to."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Basis:
    """What all shards of a data set share: those of another basis do not belong with them."""

    format_version: int
    settings: PrepareSettings
    labels: list[str]

    def to_json(self) -> dict[str, Any]:
        """The document. Fbanks are what is stored unless it says otherwise."""
        document = asdict(self)
        if self.settings.store == "fbank":
            del document["settings"]["store"]
        return document

    def canonical(self) -> str:
        """The text that fingerprints are hashes of."""
        return json.dumps(self.to_json(), sort_keys=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All tasks, and the clips in the order of the tasks."""

    specs: tuple[ShardSpec, ...]
    clips: pa.Table
    basis: Basis

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the data set."""
        return _sha256(self.basis.canonical(), *[spec.fingerprint for spec in self.specs])


class DamagedPlanError(UserError):
    """A plan was written, and it or a part of it cannot be read."""

    def __init__(self, path: str, error: Exception, fingerprint: str | None = None) -> None:
        is_missing = isinstance(error, FileNotFoundError)
        self.fault = "is missing" if is_missing else f"is damaged ({error})"
        self.fingerprint = fingerprint
        """Of the plan as it was, where that much is known."""
        super().__init__(
            path,
            f"the plan of this data set {self.fault}, and this manifest does not reproduce it",
            "restore the file, take the one manifest that the data set was made from, or give "
            "another --out",
        )
        self.args = (path, error, fingerprint)


@dataclass(frozen=True, kw_only=True, slots=True)
class Differences:
    """What keeps a manifest from carrying on a data set."""

    settings: tuple[str, ...]
    """Each as "name was, now is"."""
    removed_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]


def make_plan(manifest: Manifest, settings: PrepareSettings, before: Plan | None = None) -> Plan:
    """Assign every clip of the manifest to a shard.

    Args:
        manifest: the clips.
        settings: what they are to be prepared with.
        before: a plan of the same basis; its shards stay, clips it does not have get further ones.

    Raises:
        UserError: a split's name cannot be part of a file name.
    """
    basis = _basis(manifest, settings)
    specs = list(before.specs) if before else []
    parts = [before.clips] if before else []
    clips = manifest.clips
    if before:
        clips = clips.filter(pc.invert(pc.is_in(clips["id"], before.clips["id"])))
    num_shards = Counter(spec.split for spec in specs)
    first = len(specs)
    first_file = specs[-1].plan_file + 1 if specs else 0
    for split in sorted(pc.unique(clips["split"]).to_pylist()):
        check_split(split, "the manifest")
        ordered = _in_hash_order(clips.filter(pc.equal(clips["split"], split)))
        start = 0
        sizes = shard_sizes(ordered.num_rows, settings.clips_per_shard)
        for number, num_clips in enumerate(sizes, start=num_shards[split]):
            place = len(specs) - first
            part = ordered.slice(start, num_clips)
            spec = ShardSpec(
                name=f"{split}-{number:05d}",
                plan_file=first_file + place // _SHARDS_PER_FILE,
                row_group=place % _SHARDS_PER_FILE,
                num_clips=num_clips,
                fingerprint=_shard_fingerprint(basis, part),
            )
            specs.append(spec)
            start += num_clips
        parts.append(ordered)
    return Plan(specs=tuple(specs), clips=pa.concat_tables(parts).combine_chunks(), basis=basis)


def differences(before: Plan, manifest: Manifest, settings: PrepareSettings) -> Differences:
    """What of a plan's clips and settings is not in the manifest as it was; new clips are not."""
    basis = _flat(_basis(manifest, settings))
    old = _flat(before.basis)
    names = [name for name in {**old, **basis} if old.get(name) != basis.get(name)]
    rows = pc.index_in(before.clips["id"], manifest.clips["id"])
    there = _what_is_built(before.clips.filter(pc.is_valid(rows)))
    now = _what_is_built(manifest.clips.take(pc.drop_null(rows)))
    changed: list[str] = []
    for start in range(0, there.num_rows, 1000):
        one, other = there.slice(start, 1000), now.slice(start, 1000)
        if content_hash(one) != content_hash(other):
            pairs = zip(one.to_pylist(), other.to_pylist(), strict=True)
            changed += [row["id"] for row, new in pairs if row != new]
    return Differences(
        settings=tuple(f"{name} was {old.get(name)}, now {basis.get(name)}" for name in names),
        removed_ids=tuple(before.clips["id"].filter(pc.is_null(rows)).to_pylist()),
        changed_ids=tuple(changed),
    )


def write_plan(plan: Plan, folder: str, manifest: Manifest, before: Plan | None = None) -> None:
    """Write a plan; the document that names the shards last, and only files that are new.

    Args:
        plan: what to write.
        folder: where to.
        manifest: what the plan was made from, for `planned_fingerprint`.
        before: the plan that is there and that this one carries on.
    """
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
        storage.write_bytes(_file(folder, specs[0].plan_file), buffer.getvalue())
    document = {
        "basis": plan.basis.to_json(),
        "manifest": content_hash(manifest.clips),
        "fingerprint": plan.fingerprint,
        "specs": [asdict(spec) for spec in plan.specs],
    }
    storage.write_json(_document_path(folder), document)


def planned_fingerprint(folder: str, manifest: Manifest, settings: PrepareSettings) -> str | None:
    """The fingerprint of the plan there if it was made from just this, without making it again."""
    try:
        document = _read_document(folder)
    except DamagedPlanError:
        return None
    if document is None or document.basis != _basis(manifest, settings):
        return None
    is_same = document.manifest == content_hash(manifest.clips)
    return document.fingerprint if is_same else None


def read_plan(folder: str) -> Plan | None:
    """The plan that was written there; None if there is none.

    Raises:
        DamagedPlanError: a file of it is missing, or not as it was written.
    """
    document = _read_document(folder)
    if document is None:
        return None
    tables = []
    for number, inside in groupby(document.specs, key=lambda spec: spec.plan_file):
        path = _file(folder, number)
        try:
            tables.append(storage.read_table(path))
            _check_clips(tables[-1], list(inside), document.basis)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise DamagedPlanError(path, error, document.fingerprint) from error
    clips = pa.concat_tables(tables).combine_chunks()
    plan = Plan(specs=document.specs, clips=clips, basis=document.basis)
    if plan.fingerprint != document.fingerprint:
        fault = ValueError("another fingerprint than it gives")
        raise DamagedPlanError(_document_path(folder), fault)
    return plan


def _check_clips(clips: pa.Table, specs: list[ShardSpec], basis: Basis) -> None:
    start = 0
    for spec in specs:
        if _shard_fingerprint(basis, clips.slice(start, spec.num_clips)) != spec.fingerprint:
            raise ValueError(f"other clips of {spec.name} than were planned")
        start += spec.num_clips


def read_shard_clips(folder: str, spec: ShardSpec) -> pa.Table:
    """The clips of one shard, from the written plan."""
    path = _file(folder, spec.plan_file)
    with storage.explained(path):
        return storage.with_retries(_read_row_group, path, spec.row_group)


def _read_row_group(path: str, row_group: int) -> pa.Table:
    with storage.open_binary(path) as file:
        return pq.ParquetFile(file).read_row_group(row_group)


def shard_sizes(num_clips: int, clips_per_shard: int) -> list[int]:
    """Clips in each shard: at most `clips_per_shard`, differing by at most one.

    A small data set is cut finer, into up to 16 shards of at least 25 clips: the number must not
    depend on the CPUs at hand, and one shard would be built by one of them.
    """
    num_shards = max(
        -(-num_clips // clips_per_shard), min(_MIN_SHARDS, num_clips // _MIN_CLIPS_PER_SHARD), 1
    )
    return [num_clips // num_shards + (i < num_clips % num_shards) for i in range(num_shards)]


def _in_hash_order(clips: pa.Table) -> pa.Table:
    order = _hashes(clips["id"])
    place = order
    if clips["row_group"].null_count < clips.num_rows:
        groups = pc.binary_join_element_wise(
            clips["uri"], pc.cast(clips["row_group"], pa.string()), "#"
        )
        together = pc.is_valid(groups).to_numpy()[:, None]
        place = np.where(together, _hashes(pc.fill_null(groups, "")), order)
    keys = (order[:, 1], order[:, 0], place[:, 1], place[:, 0])
    return clips.take(pa.array(np.lexsort(keys)))


def _hashes(texts: pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """`[N, 2]`: 128 bits a text."""
    digests = (
        hashlib.blake2b(text.encode(), digest_size=16).digest()
        for chunk in texts.chunks
        for text in chunk.to_pylist()
    )
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64).reshape(-1, 2)


def _shard_fingerprint(basis: Basis, clips: pa.Table) -> str:
    return _sha256(basis.canonical(), content_hash(_what_is_built(clips)))


def _what_is_built(clips: pa.Table) -> pa.Table:
    """The clips without what is only in the index, which is made again from any manifest."""
    return clips.drop_columns(["common"])


def _basis(manifest: Manifest, settings: PrepareSettings) -> Basis:
    return Basis(format_version=FORMAT_VERSION, settings=settings, labels=list(manifest.labels))


def _flat(basis: Basis) -> dict[str, Any]:
    """The basis with one name for each thing that may differ."""
    flat: dict[str, Any] = {"format_version": basis.format_version}
    for name, value in asdict(basis.settings).items():
        flat.update(value if isinstance(value, dict) else {name: value})
    labels = basis.labels
    return {**flat, "vocabulary": f"{len(labels)} labels ({_sha256(*labels)[:8]})"}


def _document_path(folder: str) -> str:
    return storage.join(folder, "plan.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """`plan.json`."""

    basis: Basis
    manifest: str
    """Hash of the manifest that the plan was made from."""
    fingerprint: str
    specs: tuple[ShardSpec, ...]


def _read_document(folder: str) -> _Document | None:
    path = _document_path(folder)
    try:
        return storage.parse_document(storage.read_bytes(path), _Document)
    except FileNotFoundError:
        return None
    except storage.DocumentError as error:
        raise DamagedPlanError(path, error) from error


def _file(folder: str, number: int) -> str:
    return storage.join(folder, "plan", f"{number:05d}.parquet")


def content_hash(clips: pa.Table) -> str:
    """Hash of every cell of a table of `SCHEMA`, the same however its columns lie in memory."""
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
