"""Check that every byte of a prepared data set agrees with its card and index.

In: a data set. Per shard: the tar's checksum; its members, in pairs and in the order of the index;
each clip's JSON against the index, but for labels, splits and folds that the card says were
corrected later; its fbank at the offset in the index, finite and with as many frames, or its FLAC
there, with as many samples; the part file that `prepare` resumes from. For the whole: index and
ledger against the card's checksums, the card against its own, labels against the vocabulary, the
plan's clips against its fingerprints. Out: the faults, by file, and a note for `prepare`, which
then rebuilds only what is damaged.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio.stored_audio import decode_flac
from pipeline.dataset.card import Card, Corrections, checksum_fault, decode_card
from pipeline.dataset.prepared import (
    PreparedDataset,
    card_path,
    open_dataset,
    open_index,
    read_card_bytes,
    read_index_rows,
)
from pipeline.dataset.resume import Damaged, clear_damaged, write_damaged
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from pipeline.on_ray.settings import WAIT_FOR_NODES_S
from pipeline.on_ray.shared_files import SharedPaths
from pipeline.on_ray.tasks import TASK_MEMORY_BYTES, run_tasks
from pipeline.shards.match import LABELLING
from pipeline.shards.parts import (
    TarEntry,
    has_parts,
    part_path,
    read_part,
    work_folder,
)
from pipeline.shards.plan import DamagedPlanError, read_plan
from pipeline.shards.tar import checksum, fbank_from_bytes, shard_key
from pipeline.storage.table_hashes import text_hashes
from pipeline.terminal.progress import ProgressBar
from pipeline.terminal.units import counted

_METADATA_FIELDS = ("labels", "split", "fold", "duration_s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A fault in a file."""

    path: str
    """The file, relative to the data set."""
    what: str
    shard: str | None = None
    """Name of the shard to rebuild, if it is a shard's fault."""


def verify(
    path: str,
    *,
    session: AbstractContextManager[None],
    json_logs: bool = False,
    wait_s: float = WAIT_FOR_NODES_S,
) -> list[Fault]:
    """Check a data set, and leave a note for `prepare` of what is damaged.

    Args:
        path: the data set.
        session: connects to Ray; entered to check the shards.
        json_logs: report progress as JSON lines.
        wait_s: how long to wait for a node that an autoscaler starts.

    Returns:
        All faults, by path; empty if the data set is intact.

    Raises:
        UserError: there is no data set to check.
    """
    faults = [*document_faults(path), *plan_faults(path)]
    if any(fault.path in ("card.json", "index.parquet") for fault in faults):
        problem = "were not checked; run `verify` again after `prepare`"
        faults.append(Fault(path="shards", what=problem))
    else:
        dataset = open_dataset(path)
        items = _items(dataset)
        done = 0
        memory_bytes = TASK_MEMORY_BYTES + 4 * max(
            (tar.size_bytes for tar in dataset.card.shards), default=0
        )
        with session, ProgressBar("shards", len(items), json_lines=json_logs) as bar:
            task = partial(
                _task,
                path=path,
                audio_fbank=dataset.audio_fbank,
                corrections=dataset.card.corrections,
            )
            results = run_tasks(
                items,
                task,
                memory_bytes=memory_bytes,
                shared=SharedPaths(read=(card_path(path),)),
                wait_s=wait_s,
            )
            for result in results:
                faults += [Fault(**fault) for fault in result["faults"]]
                done += 1
                bar.update(done, figures={"faults": len(faults)})
    work = work_folder(path)
    try:
        if faults:
            shards = sorted({fault.shard for fault in faults if fault.shard})
            write_damaged(work, Damaged(shards=shards))
        else:
            clear_damaged(work)
    except UserError as error:
        problem = f"cannot be replaced, so `prepare` would not know what to rebuild ({error})"
        faults.append(Fault(path="_work/damaged.json", what=problem))
    return sorted(faults, key=lambda fault: (fault.path, fault.what))


def shard_faults(
    path: str,
    tar: TarEntry,
    rows: list[dict[str, Any]],
    audio_fbank: FbankSettings | None,
    corrections: Corrections | None = None,
) -> list[Fault]:
    """What is wrong with one tar.

    Args:
        path: the data set.
        tar: the card's entry.
        rows: the index's rows of this tar, in order.
        audio_fbank: how to compute fbanks from the stored audio; None if fbanks are stored.
        corrections: how the tars may differ from the index; None if they may not.
    """
    shard = tar.name.removeprefix("shards/").removesuffix(".tar")
    faults = [
        Fault(path=tar.name, what=problem, shard=shard)
        for problem in _tar_faults(path, tar, rows, audio_fbank, corrections)
    ]
    if problem := _part_fault(path, shard, tar):
        faults.append(Fault(path=f"_work/parts/{shard}.parquet", what=problem, shard=shard))
    return faults


def _items(dataset: PreparedDataset) -> list[dict[str, Any]]:
    """One item per tar: the card's entry and its rows of the index, which are contiguous."""
    ranges: dict[str, tuple[int, int]] = {}
    start = 0
    for piece in dataset.index.pieces(["shard"]):
        for run in pc.run_end_encode(piece["shard"]).chunks:
            first = start
            for name, end in zip(run.values.to_pylist(), run.run_ends.to_pylist(), strict=True):
                ranges[name] = (ranges.get(name, (first, 0))[0], start + end)
                first = start + end
            start = first
    return [
        {"tar": asdict(tar), "start": first, "end": end}
        for tar in dataset.card.shards
        for first, end in [ranges.get(tar.name, (0, 0))]
    ]


def _task(
    item: dict[str, Any],
    path: str,
    audio_fbank: FbankSettings | None,
    corrections: Corrections | None,
) -> dict[str, Any]:
    rows = read_index_rows(path, item["start"], item["end"]).to_pylist()
    faults = shard_faults(path, TarEntry(**item["tar"]), rows, audio_fbank, corrections)
    return {"faults": [asdict(fault) for fault in faults]}


def document_faults(path: str) -> list[Fault]:
    """What is wrong with the card, the index and the ledger.

    Raises:
        UserError: there is no card, so no data set.
    """
    try:
        data = read_card_bytes(path)
    except storage.NoFileError as error:
        return [Fault(path="card.json", what=error.what)]
    if problem := checksum_fault(data):
        return [Fault(path="card.json", what=problem)]
    card = decode_card(data, card_path(path))
    faults = []
    expected = {"index.parquet": card.index_sha256, "rejects.parquet": card.rejects_sha256}
    for file, sha256 in expected.items():
        try:
            _, digest = storage.open_whole(storage.join(path, file))
        except FileNotFoundError:
            faults.append(Fault(path=file, what="is missing"))
            continue
        except storage.NoFileError as error:
            faults.append(Fault(path=file, what=error.what))
            continue
        if digest != sha256:
            faults.append(Fault(path=file, what="does not match the card's checksum"))
    if faults:
        return faults
    try:
        problems = _index_faults(card, open_index(path, card))
    except UserError as error:
        problems = [error.what]
    return [Fault(path="index.parquet", what=problem) for problem in problems]


def plan_faults(path: str) -> list[Fault]:
    """What is wrong with the plan. Reading a data set needs neither plan nor parts."""
    try:
        problem = None if read_plan(work_folder(path)) or not has_parts(path) else "is missing"
        return [Fault(path="_work/plan.json", what=problem)] if problem else []
    except DamagedPlanError as error:
        return [Fault(path=error.where.removeprefix(f"{path}/"), what=error.fault)]


def _index_faults(card: Card, index: storage.TableFile) -> list[str]:
    labels = set[str]()
    for piece in index.pieces(index.column_names):  # all, for what is wrong with any of them
        labels.update(pc.unique(pc.list_flatten(piece["labels"])).to_pylist())
    unknown = labels - set(card.labels)
    faults = [f"has the label {label!r}, which the card lacks" for label in sorted(unknown)]
    if index.num_rows != card.num_clips:
        faults.append(f"has {counted(index.num_rows, 'clip')}, the card has {card.num_clips}")
    num_stored = sum(tar.num_clips for tar in card.shards)
    num_unused = card.corrections.num_unused if card.corrections else 0
    if num_stored != index.num_rows + num_unused:
        faults.append(
            f"has {counted(index.num_rows, 'clip')}, the card {num_stored} in its shards, of which "
            f"{num_unused} {'is' if num_unused == 1 else 'are'} unused"
        )
    if _has_duplicates(index):
        faults.append("has duplicate ids")
    return faults


def _has_duplicates(index: storage.TableFile) -> bool:
    """Whether two clips have the same id; of millions, only the hashes of ids are kept."""
    parts = [text_hashes(piece["id"]) for piece in index.pieces(["id"])]
    hashes = np.concatenate([np.empty(0, np.uint64), *parts])
    ordered = np.sort(hashes)
    is_repeated = np.isin(hashes, ordered[1:][ordered[1:] == ordered[:-1]])
    if not is_repeated.any():
        return False
    ids = pa.concat_tables(index.pieces(["id"], is_repeated))["id"]
    return bool(pc.count_distinct(ids).as_py() < len(ids))


def _part_fault(path: str, shard: str, tar: TarEntry) -> str | None:
    """What is wrong with a shard's part file. Reading a data set does not need it."""
    try:
        part = read_part(part_path(path, shard))
    except FileNotFoundError:
        return None
    except (ValueError, UserError):
        return "is damaged"
    return None if part.tar == tar else "belongs to another tar"


def _tar_faults(
    path: str,
    tar: TarEntry,
    rows: list[dict[str, Any]],
    audio_fbank: FbankSettings | None,
    corrections: Corrections | None,
) -> Iterator[str]:
    try:
        data = storage.read_bytes(storage.join(path, tar.name))
    except FileNotFoundError:
        yield "is missing"
        return
    except storage.NoFileError as error:
        yield error.what
        return
    if len(data) != tar.size_bytes:
        yield f"has {len(data)} bytes, {tar.size_bytes} in the card"
    elif hashlib.sha256(data).hexdigest() != tar.sha256:
        yield "does not match the card's checksum"
    if len(rows) != tar.num_clips and not corrections:
        yield f"has {counted(len(rows), 'clip')} in the index, {tar.num_clips} in the card"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            members = {
                member.name: data[member.offset_data : member.offset_data + member.size]
                for member in archive.getmembers()
            }
    except tarfile.TarError as error:
        yield f"is not a complete tar ({error})"
        return
    stored = "flac" if audio_fbank else "npy"
    expected = [f"{shard_key(row['id'])}.{kind}" for row in rows for kind in ("json", stored)]
    if corrections and len(members) == 2 * tar.num_clips:
        listed = {*expected}
        members = {name: content for name, content in members.items() if name in listed}
    if list(members) != expected:
        differing = sorted(set(expected) ^ set(members)) or ["in another order"]
        yield f"its members differ from the index: {', '.join(differing[:3])}"
        return
    for row in rows:
        key = shard_key(row["id"])
        stored_bytes = data[row["offset_bytes"] : row["offset_bytes"] + row["size_bytes"]]
        try:
            metadata = json.loads(members[f"{key}.json"])
            if audio_fbank:
                problem = _audio_fault(row, members[f"{key}.flac"], stored_bytes, audio_fbank)
            else:
                problem = _fbank_fault(row, members[f"{key}.npy"], stored_bytes)
        except (ValueError, EOFError) as error:
            yield f"clip {row['id']}: cannot be read ({error})"
            continue
        if "xxh3" in row and row["xxh3"] != checksum(stored_bytes):
            yield f"clip {row['id']}: does not match its checksum in the index"
        if _differs(metadata, row, corrections):
            yield f"clip {row['id']}: its JSON differs from the index"
        if problem:
            yield f"clip {row['id']}: {problem}"


def _differs(metadata: Any, row: dict[str, Any], corrections: Corrections | None) -> bool:
    """Whether a clip's JSON differs from the index in more than what was corrected later."""
    expected = {"id": row["id"], **{name: row[name] for name in _METADATA_FIELDS}}
    if corrections and corrections.num_outdated and isinstance(metadata, dict):
        metadata = {**metadata, **{name: row[name] for name in LABELLING if name in metadata}}
    return bool(metadata != expected)


def _fbank_fault(row: dict[str, Any], npy: bytes, stored_bytes: bytes) -> str | None:
    array = np.load(io.BytesIO(npy), allow_pickle=False)
    if array.ndim != 2 or len(array) != row["frames"] or array.tobytes() != stored_bytes:
        return "its fbank is not at the offset in the index"
    numbers = fbank_from_bytes(stored_bytes, array.shape[1]).astype(np.float32)
    return None if np.isfinite(numbers).all() else "its fbank has values that are not finite"


def _audio_fault(
    row: dict[str, Any], flac: bytes, stored_bytes: bytes, settings: FbankSettings
) -> str | None:
    num_samples = settings.samples_in(row["duration_s"])
    decode_flac(flac, num_samples)
    if flac != stored_bytes or settings.num_frames(num_samples) != row["frames"]:
        return "its audio is not at the offset in the index"
    return None
