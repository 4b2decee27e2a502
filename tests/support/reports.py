"""Runs and data sets made up for reports, and what a report says of them."""

import io
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.audio.rejects import to_table
from pipeline.dataset.card import RejectedClips
from pipeline.dataset.prepare_summary import write_summary
from pipeline.dataset.prepared import card_path
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.tar import checksum
from tests.support.cards import make_card, make_summary, split_entry, write_documents
from trainer.checkpoints.progress import SkippedStep
from trainer.report.write import write_report
from trainer.run.skipped_steps import write_bad_steps
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import Predictions, Source, write_predictions

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
    folder: str,
    clip_labels: Sequence[Sequence[str]] = ONE_LABEL,
    labels: Sequence[str] = SOUNDS,
    *,
    plan_fingerprint: str = "",
) -> str:
    """A prepared data set: the clips are `clip-0`, ...; every second one is for evaluation."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    shard = io.BytesIO()
    for number, own in enumerate(clip_labels):
        fbank = rng.normal(-5, 3, (FRAMES + number, NUM_MELS)).astype(np.float16)
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
                "xxh3": checksum(fbank.data.cast("B")),
                "frames": len(fbank),
                "duration_s": len(fbank) / 100,
                "fbank_sum": 0.0,
                "fbank_sumsq": 1.0,
            }
        )
        shard.write(fbank.tobytes())
    storage.write_bytes(storage.join(folder, "shards/all-00000.tar"), shard.getvalue())
    splits = {
        split: split_entry(sum(row["split"] == split for row in rows), 5025.0)
        for split in ("eval", "train")
    }
    counts = {
        split: {
            label: sum(label in row["labels"] for row in rows if row["split"] == split)
            for label in labels
        }
        for split in splits
    }
    reasons = {"decode: <b>not audio</b>": 2, "fetch: missing": 1}
    card = make_card(
        NUM_MELS,
        labels=list(labels),
        num_clips=len(rows),
        splits=splits,
        class_counts=counts,
        rejects=RejectedClips(num=3, by_reason=reasons),
        plan_fingerprint=plan_fingerprint,
    )
    write_summary(make_summary(folder, num_clips=len(rows), num_rejects=3))
    write_documents(folder, card, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), to_table([]))
    return folder


def write_run(
    folder: str,
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
    lr: float = 1e-5,
) -> str:
    """A run on such a data set: scores are noise plus `skill` where the label is true."""
    rng = np.random.default_rng(seed)
    evaluated = [number for number in range(len(clip_labels)) if number % 2]
    run = {
        "format_version": 1,
        "recipe": recipe,
        "settings": {
            "model": {"stride": 10, "size": "base", "note": "<i>none</i>"},
            "optimizer": {"lr": lr, "betas": [0.95, 0.999]},
        },
        "versions": {"python": "3.11", "torch": "2.11"},
        "seed": seed,
        "num_parameters": 86_594_063,
        "data": {
            "path": data,
            "fingerprint": storage.read_json(card_path(data))["fingerprint"],
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
    storage.write_json(storage.join(folder, "run.json"), run)
    storage.write_json(
        storage.join(folder, "history.json"), make_history(rng, num_epochs, is_finished=is_finished)
    )
    bad_steps = [
        SkippedStep(step=step, epoch=1, loss="nan", grad_norm="12.5", ids=("clip-0",))
        for step in (6, 7)
    ]
    write_bad_steps(folder, bad_steps if num_epochs else [])
    if has_predictions:
        predictions = make_predictions(rng, clip_labels, labels, skill)
        metrics = evaluate_scores(predictions.targets, predictions.scores, labels)
        write_predictions(folder, predictions, metrics)
    return folder


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
            "num_bad_steps": 2 if step == 7 else 0,
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
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce", checkpoint_step=60),
    )


class Text(HTMLParser):
    """The text and the elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words += data.split()

    def __contains__(self, sentence: str) -> bool:
        return sentence in " ".join(self.words)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(*runs: str, **options: Any) -> Text:
    return Text(storage.read_bytes(write_report(list(runs), **options)).decode())


def shown_figures(runs: Sequence[str]) -> dict[str, Any]:
    """The figures in a page, by key."""
    page = storage.read_bytes(write_report(list(runs))).decode()
    start = page.index('id="figures">') + len('id="figures">')
    shown: dict[str, Any] = json.loads(page[start : page.index("</script>", start)])
    return shown
