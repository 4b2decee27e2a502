"""The data-set card: what a prepared data set holds, as one JSON document, written last.

A data set is complete once it has a card. The same manifest and settings always give the same
card: it holds no times and no output paths.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.totals import IndexTotals, SplitTotals
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.coverage import Coverage
from pipeline.manifest.manifest import SCHEMA, Manifest
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.shards.parts import TarEntry
from pipeline.shards.plan import FORMAT_VERSION, READ_VERSIONS
from pipeline.shards.settings import PrepareSettings, Store
from pipeline.storage.stored_table import taken
from pipeline.storage.table_hashes import content_hash


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitEntry:
    """The clips of a split."""

    num_clips: storage.Count
    num_frames: storage.Count
    duration_s: storage.Amount
    mean: storage.Number
    """Over all values of the clips' fbanks."""
    std: storage.Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class RejectedClips:
    """How many clips were rejected; the ledger names them."""

    num: storage.Count
    by_reason: dict[str, storage.Count]
    """By "stage: reason", the commonest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClippedAudio:
    """Audio that exceeded full scale and was clipped to it."""

    num_clips: storage.Count
    num_samples: storage.Count


@dataclass(frozen=True, kw_only=True, slots=True)
class Corrections:
    """How the tars differ from the index, since the manifest was corrected: the index is right."""

    num_outdated: storage.Count
    """Clips whose JSON in a tar has older labels, or an older split or fold, than the index."""
    num_unused: storage.Count
    """Clips that are in a tar, but no longer in the index."""
    manifest_fingerprint: str
    """Hash of the corrected manifest's clips."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """The document `card.json`."""

    format_version: int
    fbank: FbankSettings
    store: Store = "fbank"
    clipped: ClippedAudio | None = None
    """None in a data set of fbanks."""
    labels: list[str]
    """The vocabulary, in the order of the classes."""
    num_clips: storage.Count
    splits: dict[str, SplitEntry]
    mean: storage.Number
    """Over the split `train`; over all clips if there is no such split."""
    std: storage.Amount
    class_counts: dict[str, dict[str, storage.Count]]
    """Clips of each label, by split."""
    low_rates: dict[str, storage.Count] = field(default_factory=dict)
    """Clips of files with a sample rate below the data set's, by that rate in Hz."""
    rejects: RejectedClips
    shards: list[TarEntry]
    plan_fingerprint: str
    """Hash of the clips and settings that the shards were built from."""
    corrections: Corrections | None = None
    """None if the shards were built from the same manifest as the index."""
    coverage: Coverage | None
    common_fingerprint: str
    """Hash of the manifest's common subset."""
    index_sha256: str
    rejects_sha256: str
    """Of the ledger."""
    fingerprint: str = ""
    """Hash of all other fields."""

    def to_json(self) -> dict[str, Any]:
        """The document; without `store` and `clipped` if fbanks are stored, nor what is none."""
        document = asdict(self) | {"coverage": self.coverage and self.coverage.to_json()}
        if self.store == "fbank":
            del document["store"], document["clipped"]
        if self.corrections is None:
            del document["corrections"]
        if not self.low_rates:
            del document["low_rates"]
        return document


def make_card(
    *,
    settings: PrepareSettings,
    labels: tuple[str, ...],
    totals: IndexTotals,
    reasons: dict[str, int],
    low_rates: dict[str, int],
    tars: list[TarEntry],
    plan_fingerprint: str,
    corrections: Corrections | None = None,
    coverage: Coverage | None,
    common_fingerprint: str,
    index_sha256: str,
    rejects_sha256: str,
) -> Card:
    """Describe a data set.

    Args:
        settings: what it was prepared with.
        labels: the vocabulary, in the order of the classes.
        totals: of all clips of the index.
        reasons: rejected clips by reason.
        low_rates: clips of files with a lower sample rate, by that rate.
        tars: the shards.
        plan_fingerprint: hash of the clips and settings that the shards were built from.
        corrections: how the tars differ from the index; None if they do not.
        coverage: how many of the clips that the source lists were found; None if it has no list.
        common_fingerprint: hash of the manifest's common subset.
        index_sha256: checksum of the index.
        rejects_sha256: checksum of the ledger.
    """
    splits = dict(sorted(totals.by_split.items()))
    num_mels = settings.fbank.num_mels
    trained = splits[TRAIN_SPLIT].moments if TRAIN_SPLIT in splits else totals.moments
    mean, std = trained.mean_and_std(num_mels)
    card = Card(
        format_version=FORMAT_VERSION,
        fbank=settings.fbank,
        store=settings.store,
        clipped=None if settings.store == "fbank" else _clipped(totals),
        labels=list(labels),
        num_clips=totals.num_clips,
        splits={name: _split_entry(split, num_mels) for name, split in splits.items()},
        mean=mean,
        std=std,
        class_counts={
            name: {label: split.labels[label] for label in labels} for name, split in splits.items()
        },
        low_rates=low_rates,
        rejects=RejectedClips(num=sum(reasons.values()), by_reason=reasons),
        shards=tars,
        plan_fingerprint=plan_fingerprint,
        corrections=corrections,
        coverage=coverage,
        common_fingerprint=common_fingerprint,
        index_sha256=index_sha256,
        rejects_sha256=rejects_sha256,
    )
    return replace(card, fingerprint=fingerprint(card.to_json()))


def decode_card(data: bytes, path: str) -> Card:
    """Parse the content of a `card.json`.

    Raises:
        UserError: it is damaged, or has another format version.
    """
    try:
        version = storage.parse_document(data, _Version).format_version
        if version in READ_VERSIONS:
            return storage.parse_document(data, Card)
    except storage.DocumentError as error:
        raise UserError(path, f"the card is damaged: {error}", "prepare it again") from error
    raise UserError(
        path,
        f"the data set has format version {version}, this program reads "
        f"{' and '.join(map(str, READ_VERSIONS))}",
        "prepare it again, or use the version of ast-ray that did",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Version:
    format_version: int


def common_fingerprint(manifest: Manifest) -> str:
    """Hash of the ids in the common subset, which may change without a rebuild."""
    ids = manifest.clips["id"].filter(manifest.clips["common"]).to_pylist()
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def manifest_fingerprint(manifest: Manifest) -> str:
    """Hash of the clips, whatever their order, without the common subset."""
    by_id = taken(manifest.clips, pc.sort_indices(manifest.clips["id"]).to_numpy())
    return content_hash(by_id, [name for name in SCHEMA.names if name != "common"])


def fingerprint(document: Mapping[str, Any]) -> str:
    """Hash of a card's document, without the hash in it."""
    hashed = {name: value for name, value in document.items() if name != "fingerprint"}
    canonical = json.dumps(hashed, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def checksum_fault(data: bytes) -> str | None:
    """What is wrong with the content of a `card.json`; None if it is unchanged."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter if brackets nest too deep
        return f"is not JSON ({error})"
    if not isinstance(document, dict):
        return "is not a card"
    is_unchanged = document.get("fingerprint") == fingerprint(document)
    return None if is_unchanged else "does not match its own checksum"


def _clipped(totals: IndexTotals) -> ClippedAudio:
    return ClippedAudio(num_clips=totals.num_clipped_clips, num_samples=totals.num_clipped_samples)


def _split_entry(split: SplitTotals, num_mels: int) -> SplitEntry:
    mean, std = split.moments.mean_and_std(num_mels)
    return SplitEntry(
        num_clips=split.num_clips,
        num_frames=split.moments.num_frames,
        duration_s=split.duration_s.value(),
        mean=mean,
        std=std,
    )
