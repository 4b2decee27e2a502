"""Tiny prepared data sets and recipes for tests of training: made in code, without audio or Ray."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from pipeline import storage
from pipeline.dataset.card import fingerprint, make_card
from pipeline.dataset.prepared import PreparedDataset, card_path, open_dataset
from pipeline.dataset.totals import IndexTotals
from pipeline.shards.parts import INDEX_SCHEMA, TarEntry
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.tar import Fbank, ShardWriter
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe

# Tensors this small are slower on several threads, and far slower when the cores are busy.
torch.set_num_threads(1)

LABELS = ("low", "middle", "high")
NUM_FOLDS = 2

TINY: dict[str, dict[str, Any]] = {
    "model": {
        "backbone": "deit_tiny_distilled_patch16_224.fb_in1k",
        "pretrained": False,
        "depth": 1,
        "patch_frequency": 64,
        "patch_time": 16,
        "stride_frequency": 64,
        "stride_time": 16,
        "num_frames": 64,
    },
    "augment": {"frequency_mask": 8, "time_mask": 8, "mixup_share": 0.5},
    "schedule": {
        "lr": 2e-3,
        "warmup_steps": 4,
        "warmup_every_steps": 2,
        "decay_after_epochs": [2],
    },
    "loader": {"threads": 2, "batches_ahead": 2},
    "train": {"epochs": 3, "batch_size": 7, "log_every_steps": 2},
}
"""A model that learns such a data set in seconds; batches that divide neither clips nor ranks."""


def tiny_recipe(**changes: dict[str, Any]) -> Recipe:
    """`TINY` with some keys changed: `tiny_recipe(train={"epochs": 1})`."""
    document = {section: {**keys, **changes.get(section, {})} for section, keys in TINY.items()}
    return make_recipe("tiny", {**changes, **document}, where="tiny")


def write_recipe(path: Path, recipe: Recipe) -> Path:
    """A recipe as a TOML file, for the command line."""
    lines = []
    for section, keys in recipe.to_json().items():
        lines.append(f"[{section}]")
        for key, value in keys.items():
            text = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {'nan' if value is None else text}")
    path.write_text("\n".join(lines))
    return path


def make_prepared(
    folder: str,
    *,
    num_train: int = 40,
    num_eval: int = 20,
    max_labels: int = 1,
    seed: int = 0,
    num_mels: int = 128,
    classes_in_turn: Sequence[int] = range(len(LABELS)),
) -> PreparedDataset:
    """Write a data set of the splits `train` (2 folds) and `eval`, and open it.

    A clip is noise with one louder band of mels for each of its 1 to `max_labels` labels, the
    first of them by turns, 40 to 90 frames long, so that some are padded to `TINY`'s 64 frames
    and some are cut.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    tars = []
    for split, num_clips in (("train", num_train), ("eval", num_eval)):
        name = f"shards/{split}-00000.tar"
        with storage.new_file(storage.join(folder, name)) as file:
            writer = ShardWriter(file)
            for number in range(num_clips):
                count = int(rng.integers(1, max_labels + 1))
                first = classes_in_turn[number % len(classes_in_turn)]
                classes = sorted({first, *rng.permutation(len(LABELS))[: count - 1]})
                fbank = _fbank(rng, classes, num_mels)
                entry = {
                    "split": split,
                    "fold": number % NUM_FOLDS + 1 if split == "train" else 0,
                    "labels": [LABELS[number] for number in classes],
                    "duration_s": len(fbank) / 100,
                }
                clip_id = f"{split}/{number:02d}"
                placed = writer.add(clip_id, entry, fbank)
                exact = fbank.astype(np.float64)
                rows.append(
                    {
                        **entry,
                        "id": clip_id,
                        "uri": f"/audio/{clip_id}.wav",
                        "shard": name,
                        "offset_bytes": placed.offset_bytes,
                        "size_bytes": placed.size_bytes,
                        "xxh3": placed.xxh3,
                        "frames": len(fbank),
                        "common": number % 2 == 0,
                        "fbank_sum": math.fsum(exact.ravel()),
                        "fbank_sumsq": math.fsum((exact**2).ravel()),
                    }
                )
            writer.finish()
            file.commit()
        tars.append(
            TarEntry(
                name=name,
                num_clips=num_clips,
                size_bytes=writer.size_bytes,
                sha256=writer.sha256,
            )
        )
    _write_index_and_card(folder, rows, tars)
    return open_dataset(folder)


def to_version_2(folder: str) -> None:
    """Rewrite a data set as before its index had checksums of clips."""
    index = storage.read_table(storage.join(folder, "index.parquet")).drop_columns(["xxh3"])
    data = storage.encode_table(index)
    storage.write_bytes(storage.join(folder, "index.parquet"), data)
    changes = {"format_version": 2, "index_sha256": hashlib.sha256(data).hexdigest()}
    card = storage.read_json(card_path(folder)) | changes
    storage.write_json(card_path(folder), card | {"fingerprint": fingerprint(card)})


def _fbank(rng: np.random.Generator, classes: Sequence[int], num_mels: int) -> Fbank:
    num_frames = int(rng.integers(40, 91))
    fbank = rng.normal(-6, 2, (num_frames, num_mels))
    width = num_mels // len(LABELS)
    for number in classes:
        fbank[:, number * width : (number + 1) * width] += 3
    return fbank.astype(np.float16)


def _write_index_and_card(folder: str, rows: list[dict[str, Any]], tars: list[TarEntry]) -> None:
    index = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    index_bytes = storage.encode_table(index)
    storage.write_bytes(storage.join(folder, "index.parquet"), index_bytes)
    shas = "".join(tar.sha256 for tar in tars)
    totals = IndexTotals()
    totals.add(index)
    card = make_card(
        settings=PrepareSettings(),
        labels=LABELS,
        totals=totals,
        reasons={},
        low_rates={},
        tars=tars,
        coverage=None,
        common_fingerprint="",
        plan_fingerprint=hashlib.sha256(shas.encode()).hexdigest(),
        index_sha256=hashlib.sha256(index_bytes).hexdigest(),
        rejects_sha256="",
    )
    storage.write_json(card_path(folder), card.to_json())
