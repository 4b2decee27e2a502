"""The data-set card: what a prepared data set holds, as one JSON document, written last.

A data set is complete once it has a card. The same manifest and settings always give the same
card: it holds no times and no output paths.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.coverage import Coverage
from pipeline.manifest.manifest import Manifest
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.shards.parts import TarEntry
from pipeline.shards.plan import FORMAT_VERSION, READ_VERSIONS, content_hash
from pipeline.shards.settings import PrepareSettings, Store


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
    index: pa.Table,
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
        index: all clips, with the columns of `index_schema`.
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
    splits = sorted(pc.unique(index["split"]).to_pylist())
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in splits}
    mean, std = statistics(parts.get(TRAIN_SPLIT, index), settings.fbank.num_mels)
    card = Card(
        format_version=FORMAT_VERSION,
        fbank=settings.fbank,
        store=settings.store,
        clipped=None if settings.store == "fbank" else _clipped(index),
        labels=list(labels),
        num_clips=index.num_rows,
        splits={split: _split_entry(part, settings) for split, part in parts.items()},
        mean=mean,
        std=std,
        class_counts={split: _count_labels(part, labels) for split, part in parts.items()},
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
    return content_hash(manifest.clips.drop_columns(["common"]).sort_by("id"))


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


def statistics(clips: pa.Table, num_mels: int) -> tuple[float, float]:
    """Exact mean and standard deviation over all values of the clips' fbanks.

    Sums are exact (`math.fsum`), so the order of the clips does not matter.
    """
    num_values = pc.sum(clips["frames"]).as_py() * num_mels
    mean = math.fsum(clips["fbank_sum"].to_pylist()) / num_values
    mean_square = math.fsum(clips["fbank_sumsq"].to_pylist()) / num_values
    return mean, math.sqrt(max(0.0, mean_square - mean * mean))


def _clipped(index: pa.Table) -> ClippedAudio:
    num_clipped = index["num_clipped"].to_numpy()
    return ClippedAudio(num_clips=int((num_clipped > 0).sum()), num_samples=int(num_clipped.sum()))


def _split_entry(clips: pa.Table, settings: PrepareSettings) -> SplitEntry:
    mean, std = statistics(clips, settings.fbank.num_mels)
    return SplitEntry(
        num_clips=clips.num_rows,
        num_frames=pc.sum(clips["frames"]).as_py(),
        duration_s=math.fsum(clips["duration_s"].to_pylist()),
        mean=mean,
        std=std,
    )


def _count_labels(clips: pa.Table, labels: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(pc.list_flatten(clips["labels"]).to_pylist())
    return {label: counts[label] for label in labels}
