"""The report: what it says of runs, what it says of what is missing, and that it stays inert."""

import base64
import io
import json
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import storage
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from browser import OpenPage, open_page
from trainer.metrics import evaluate_scores
from trainer.report import examples, figures, run_names, write_report

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<b>bold</b> & <i>it</i>",
    "<img src=x onerror=alert(2)>",
    "\"quoted\" 'label' %{x} {{ 7 * 7 }}",
    "-->&lt;u&gt;\\u003c]]>",
    "<a href='https://example.org/'>link</a>",
    "Vogelgesang, Bäche; 鳥 🐦 \u2028 end",
)
NUM_MELS = 16
FRAMES = 30


def write_data(
    folder: Path,
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str],
    *,
    fingerprint: str = "f" * 64,
    make_fbank: Callable[[int], Any] | None = None,
) -> str:
    """A prepared data set: the clips are `clip-0`, ...; every second one is for evaluation."""
    rng = np.random.default_rng(0)
    rows, shard = [], io.BytesIO(b"")
    for number, own in enumerate(clip_labels):
        fbank = (
            make_fbank(number) if make_fbank else rng.normal(-5, 3, (FRAMES + number, NUM_MELS))
        ).astype(np.float16)
        rows.append(
            {
                "id": f"clip-{number}",
                "uri": f"/audio/{number}.wav",
                "split": "eval" if number % 2 else "train",
                "fold": 0,
                "labels": list(own),
                "shard": "shards/all-00000.tar",
                "offset_bytes": shard.tell(),
                "size_bytes": fbank.nbytes,
                "frames": len(fbank),
                "duration_s": len(fbank) / 100,
                "fbank_sum": 0.0,
                "fbank_sumsq": 1.0,
            }
        )
        shard.write(fbank.tobytes())
    storage.write_bytes(str(folder / "shards" / "all-00000.tar"), shard.getvalue())
    storage.write_table(str(folder / "index.parquet"), pa.Table.from_pylist(rows))
    num_mels = fbank.shape[1]
    split_facts = {
        split: {
            "num_clips": sum(row["split"] == split for row in rows),
            "num_frames": 1000,
            "duration_s": 5025.0,
            "mean": -5.0,
            "std": 3.0,
        }
        for split in ("eval", "train")
    }
    counts = {
        split: {
            label: sum(label in row["labels"] for row in rows if row["split"] == split)
            for label in labels
        }
        for split in split_facts
    }
    card = {
        "format_version": 1,
        "fbank": {"sample_rate_hz": 16000, "num_mels": num_mels, "frame_shift_ms": 10},
        "labels": list(labels),
        "num_clips": len(rows),
        "splits": split_facts,
        "mean": -5.0,
        "std": 3.0,
        "class_counts": counts,
        "rejects": {"num": 3, "by_reason": {"decode: <b>not audio</b>": 2, "fetch: missing": 1}},
        "fingerprint": fingerprint,
    }
    storage.write_json(
        str(folder / "prepare_summary.json"),
        {
            "num_clips": len(rows),
            "num_rejects": 3,
            "wall_s": 12.5,
            "clips_per_s": 321.5,
            "stages_s": {"fetch": 3.0, "decode": 8.0, "fbank": 71.0, "write": 0.5},
        },
    )
    storage.write_json(str(folder / "card.json"), card)
    return str(folder)


def write_run(
    folder: Path,
    data: str,
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str],
    *,
    seed: int = 0,
    num_epochs: int = 3,
    skill: float = 2.0,
    is_finished: bool = True,
    has_predictions: bool = True,
    recipe: str = "tiny",
) -> str:
    """A run on such a data set: scores are noise plus `skill` where the label is true."""
    rng = np.random.default_rng(seed)
    evaluated = [number for number in range(len(clip_labels)) if number % 2]
    run = {
        "format_version": 1,
        "recipe": recipe,
        "settings": {
            "model": {"stride": 10, "size": "base", "note": "<i>none</i>"},
            "optimizer": {"lr": 1e-5 * (1 + seed), "betas": [0.95, 0.999]},
        },
        "versions": {"python": "3.11", "torch": "2.11"},
        "seed": seed,
        "num_parameters": 86_594_063,
        "data": {
            "path": data,
            "fingerprint": "f" * 64,
            "labels": list(labels),
            "num_train_clips": len(clip_labels) - len(evaluated),
            "num_eval_clips": len(evaluated),
            "eval_split": "eval",
            "eval_fold": 0,
            "mean": -5.0,
            "std": 3.0,
        },
    }
    storage.write_json(str(folder / "run.json"), run)
    storage.write_json(
        str(folder / "history.json"), make_history(rng, num_epochs, is_finished=is_finished)
    )
    if has_predictions:
        own = [clip_labels[number] for number in evaluated]
        ids = [f"clip-{number}" for number in evaluated]
        write_predictions(folder, "eval", ids, own, labels, make_scores(rng, own, labels, skill))
    return str(folder)


def make_history(
    rng: np.random.Generator, num_epochs: int, *, is_finished: bool, steps_per_epoch: int = 20
) -> dict[str, Any]:
    num_steps = num_epochs * steps_per_epoch
    steps = [
        {
            "step": step,
            "epoch": (step - 1) // steps_per_epoch + 1,
            "loss": float(0.1 + 0.6 * np.exp(-2 * step / num_steps) + rng.normal(0, 0.02)),
            "lr": 1e-4 * min(1.0, step / 10) * 0.5 ** ((step - 1) // steps_per_epoch),
            "grad_norm": 1.0,
            "clips_per_s": 400.0,
        }
        for step in range(1, num_steps + 1)
    ]
    epochs = [
        {
            "epoch": epoch,
            "step": epoch * steps_per_epoch,
            "train_loss": 0.1 + 0.6 * np.exp(-2 * epoch / num_epochs),
            "eval_loss": 0.2 + 0.5 * np.exp(-2 * epoch / num_epochs),
            "mAP": float(0.5 - 0.4 / epoch + rng.normal(0, 0.01)),
            "mAUC": float(0.95 - 0.2 / epoch),
            "d_prime": float(2.3 - 1.0 / epoch),
            "accuracy": None,
            "train_s": 61.0,
            "eval_s": 7.0,
        }
        for epoch in range(1, num_epochs + 1)
    ]
    return {"steps": steps, "epochs": epochs, "finished": is_finished}


def make_scores(
    rng: np.random.Generator,
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str],
    skill: float,
) -> Any:
    targets = np.array([[label in own for label in labels] for own in clip_labels])
    logits = rng.normal(-2, 1, targets.shape) + skill * targets
    return (1 / (1 + np.exp(-logits))).astype(np.float32)


def write_predictions(
    folder: Path,
    name: str,
    ids: Sequence[str],
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str],
    scores: Any,
) -> None:
    metadata = {
        "labels": list(labels),
        "split": "eval",
        "fold": 0,
        "activation": "sigmoid",
        "checkpoint_step": 60,
    }
    schema = pa.schema(
        [("id", pa.string()), ("labels", pa.list_(pa.string())), ("scores", pa.list_(pa.float32()))]
    ).with_metadata({b"ast_ray": json.dumps(metadata).encode()})
    columns = {"id": list(ids), "labels": [list(own) for own in clip_labels]}
    table = pa.table({**columns, "scores": scores.tolist()}, schema=schema)
    storage.write_table(str(folder / "predictions" / f"{name}.parquet"), table)
    targets = np.array([[label in own for label in labels] for own in clip_labels])
    metrics = evaluate_scores(targets, scores, labels).to_json()
    storage.write_json(str(folder / "predictions" / f"{name}.json"), {"name": name, **metrics})
