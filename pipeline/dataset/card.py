"""The data-set card: what a prepared data set holds, as one JSON document, written last.

That it is there says that the data set is complete. It holds nothing that differs between two
preparations of the same manifest with the same settings: no times, no paths of the output.
"""

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import Manifest
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.shards.parts import TarFacts
from pipeline.shards.plan import FORMAT_VERSION
from pipeline.shards.settings import PrepareSettings

Card = dict[str, Any]


def make_card(
    *,
    settings: PrepareSettings,
    labels: tuple[str, ...],
    index: pa.Table,
    reasons: dict[str, int],
    tars: list[TarFacts],
    plan_fingerprint: str,
    coverage: dict[str, Any] | None,
    common_fingerprint: str,
    checksums: dict[str, str],
) -> Card:
    """Describe a data set.

    Args:
        settings: what it was prepared with.
        labels: the vocabulary, in the order of the classes.
        index: all clips, with the columns that `index_schema` says.
        reasons: rejected clips by reason.
        tars: the shards.
        plan_fingerprint: hash of the manifest and settings it was prepared from.
        coverage: what the manifest's source lists and what of it was found, if it tells.
        common_fingerprint: of the manifest's common subset.
        checksums: SHA-256 of the index (`index_sha256`) and of the ledger (`rejects_sha256`).

    Returns:
        The card; `mean` and `std` are those of the split `train`, or of all clips without one.
    """
    splits = sorted(pc.unique(index["split"]).to_pylist())
    parts = {split: index.filter(pc.equal(index["split"], split)) for split in splits}
    training = parts.get(TRAIN_SPLIT, index)
    card: Card = {
        "format_version": FORMAT_VERSION,
        "fbank": asdict(settings.fbank),
        **_audio_facts(settings, index),
        "labels": list(labels),
        "num_clips": index.num_rows,
        "splits": {split: _split_facts(part, settings) for split, part in parts.items()},
        **statistics(training, settings.fbank.num_mels),
        "class_counts": {split: _count_labels(part, labels) for split, part in parts.items()},
        "rejects": {"num": sum(reasons.values()), "by_reason": reasons},
        "shards": [asdict(tar) for tar in tars],
        "plan_fingerprint": plan_fingerprint,
        "coverage": coverage,
        "common_fingerprint": common_fingerprint,
        **checksums,
    }
    return {**card, "fingerprint": fingerprint(card)}


def common_fingerprint(manifest: Manifest) -> str:
    """Hash of the ids in the common subset, which may change without anything being built."""
    ids = manifest.clips["id"].filter(manifest.clips["common"]).to_pylist()
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def fingerprint(card: Card) -> str:
    """Hash of all that a card says, but for this hash itself."""
    facts = {name: value for name, value in card.items() if name != "fingerprint"}
    canonical = json.dumps(facts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def card_fault(card: Any) -> str | None:
    """What is wrong with what was read as a card; None if it is as it was written."""
    if not isinstance(card, dict):
        return "is no card"
    whole = card.get("fingerprint") == fingerprint(card)
    return None if whole else "does not have the checksum it gives itself"


def statistics(clips: pa.Table, num_mels: int) -> dict[str, float]:
    """Exact mean and standard deviation over every stored number of the clips' fbanks.

    Sums are carried without rounding (`math.fsum`), so the order of the clips does not matter.
    """
    num_values = pc.sum(clips["frames"]).as_py() * num_mels
    mean = math.fsum(clips["fbank_sum"].to_pylist()) / num_values
    mean_square = math.fsum(clips["fbank_sumsq"].to_pylist()) / num_values
    return {"mean": mean, "std": math.sqrt(max(0.0, mean_square - mean * mean))}


def _audio_facts(settings: PrepareSettings, index: pa.Table) -> dict[str, Any]:
    """Only of a data set that stores audio: a card that does not say what is stored has fbanks."""
    if settings.store == "fbank":
        return {}
    num_clipped = index["num_clipped"].to_numpy()
    clipped = {"num_clips": int((num_clipped > 0).sum()), "num_samples": int(num_clipped.sum())}
    return {"store": settings.store, "clipped": clipped}


def _split_facts(clips: pa.Table, settings: PrepareSettings) -> dict[str, float]:
    return {
        "num_clips": clips.num_rows,
        "num_frames": pc.sum(clips["frames"]).as_py(),
        "duration_s": math.fsum(clips["duration_s"].to_pylist()),
        **statistics(clips, settings.fbank.num_mels),
    }


def _count_labels(clips: pa.Table, labels: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(pc.list_flatten(clips["labels"]).to_pylist())
    return {label: counts[label] for label in labels}
