"""Invented cards and summaries of data sets, made without `prepare`."""

import hashlib
from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.dataset.card import Card, RejectedClips, SplitEntry, fingerprint
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import card_path
from pipeline.fbank_settings import FbankSettings
from pipeline.shards.parts import INDEX_SCHEMA, TarEntry
from pipeline.shards.plan import FORMAT_VERSION


def make_card(num_mels: int, **changes: Any) -> Card:
    """A card with invented values, except for `changes`."""
    defaults = {
        "format_version": FORMAT_VERSION,
        "fbank": FbankSettings(num_mels=num_mels),
        "labels": [],
        "num_clips": 0,
        "splits": {},
        "mean": -5.0,
        "std": 3.0,
        "class_counts": {},
        "rejects": RejectedClips(num=0, by_reason={}),
        "shards": [TarEntry(name="all-00000", num_clips=0, size_bytes=2_340_000, sha256="0" * 64)],
        "plan_fingerprint": "",
        "coverage": None,
        "common_fingerprint": "",
        "index_sha256": "",
        "rejects_sha256": "",
        "fingerprint": "f" * 64,
    }
    return Card(**{**defaults, **changes})


def write_documents(folder: str, card: Card, index: pa.Table, ledger: pa.Table) -> None:
    """Write a data set's card, index and ledger, with right checksums.

    Columns that the index lacks are empty.
    """
    columns = [
        index[field.name].cast(field.type)
        if field.name in index.column_names
        else pa.nulls(index.num_rows, field.type)
        for field in INDEX_SCHEMA
    ]
    checksums: dict[str, Any] = {}
    for name, table in (
        ("index", pa.table(columns, schema=INDEX_SCHEMA)),
        ("rejects", ledger),
    ):
        data = storage.encode_table(table)
        storage.write_bytes(storage.join(folder, f"{name}.parquet"), data)
        checksums[f"{name}_sha256"] = hashlib.sha256(data).hexdigest()
    card = replace(card, **checksums)
    card = replace(card, fingerprint=fingerprint(card.to_json()))
    storage.write_json(card_path(folder), card.to_json())


def split_entry(num_clips: int, duration_s: float) -> SplitEntry:
    """A split of clips."""
    return SplitEntry(
        num_clips=num_clips, num_frames=1000, duration_s=duration_s, mean=-5.0, std=3.0
    )


def make_summary(output: str, **changes: Any) -> PrepareSummary:
    """The summary of a run of `prepare` with invented values, except for `changes`."""
    defaults: dict[str, Any] = {
        "output": output,
        "num_clips": 12,
        "num_rejects": 0,
        "rejects_by_reason": {},
        "num_clipped_clips": 0,
        "num_repaired_clips": 0,
        "num_faded_clips": 0,
        "num_shards": 1,
        "num_shards_built": 1,
        "num_clips_built": 12,
        "size_bytes": 2_340_000,
        "fetched_bytes": 1_000_000,
        "audio_s": 36.0,
        "wall_s": 12.5,
        "clips_per_s": 321.5,
        "stages_s": {"fetch": 3.0, "decode": 8.0, "fbank": 71.0, "write": 0.0},
    }
    return PrepareSummary(**{**defaults, **changes})
