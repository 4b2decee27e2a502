"""The report: what it says of runs and of what is missing, that figures are drawn, and that labels
stay inert text, in the page and in the figures.
"""

import io
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from pipeline import storage
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from tests.browser import OpenPage, open_page
from trainer.metrics import evaluate_scores
from trainer.predictions import Predictions, write_predictions
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
SOUNDS = ("rain", "dog bark", "siren", "clock tick")
ONE_LABEL = [[SOUNDS[number // 2 % 4]] for number in range(80)]
"""Labels of clips: both splits have every class equally often."""


def write_data(
    folder: str | Path,
    clip_labels: Sequence[Sequence[str]] = ONE_LABEL,
    labels: Sequence[str] = SOUNDS,
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
    storage.write_bytes(storage.join(str(folder), "shards/all-00000.tar"), shard.getvalue())
    storage.write_table(storage.join(str(folder), "index.parquet"), pa.Table.from_pylist(rows))
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
        storage.join(str(folder), "prepare_summary.json"),
        {
            "num_clips": len(rows),
            "num_rejects": 3,
            "wall_s": 12.5,
            "clips_per_s": 321.5,
            "stages_s": {"fetch": 3.0, "decode": 8.0, "fbank": 71.0, "write": 0.5},
        },
    )
    storage.write_json(storage.join(str(folder), "card.json"), card)
    return str(folder)


def write_run(
    folder: str | Path,
    data: str,
    clip_labels: Sequence[Sequence[str]] = ONE_LABEL,
    labels: Sequence[str] = SOUNDS,
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
            "eval_name": "eval",
            "eval_split": "eval",
            "eval_fold": 0,
            "mean": -5.0,
            "std": 3.0,
        },
    }
    storage.write_json(storage.join(str(folder), "run.json"), run)
    storage.write_json(
        storage.join(str(folder), "history.json"), make_history(rng, num_epochs, is_finished=is_finished)
    )
    if has_predictions:
        predictions = make_predictions(rng, clip_labels, labels, skill)
        metrics = evaluate_scores(predictions.targets, predictions.scores, labels)
        write_predictions(str(folder), predictions, metrics)
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


def make_predictions(
    rng: np.random.Generator,
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str],
    skill: float,
) -> Predictions:
    """Of every second clip: those of the evaluation split."""
    ids = [f"clip-{number}" for number in range(len(clip_labels))][1::2]
    targets = np.array([[label in own for label in labels] for own in clip_labels[1::2]])
    logits = rng.normal(-2, 1, targets.shape) + skill * targets
    return Predictions(
        name="eval",
        ids=ids,
        labels=list(labels),
        targets=targets.astype(np.float32),
        scores=(1 / (1 + np.exp(-logits))).astype(np.float32),
        facts={"loss": "bce", "checkpoint_step": 60},
    )
