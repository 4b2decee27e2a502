"""The report: what it says of runs and of what is missing, that figures are drawn, and that labels
stay inert text, in the page and in the figures.
"""

import io
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.audio.rejects import to_table
from pipeline.dataset.card import RejectedClips
from pipeline.dataset.prepare_summary import write_summary
from pipeline.dataset.prepared import card_path, open_dataset
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.tar import checksum
from tests.support.browser import OfflineBrowser, OpenPage, open_browser, swipe_left, wait_until
from tests.support.cards import make_card, make_summary, split_entry, write_documents
from tests.support.errors import refused
from tests.support.prepared import tiny_recipe
from trainer.checkpoints.progress import CurvePoint, SkippedStep
from trainer.optim.schedule import learning_rate
from trainer.optim.settings import ScheduleSettings
from trainer.report import examples, figures
from trainer.report.runs import member_paths, run_names
from trainer.report.write import write_report
from trainer.run.skipped_steps import write_bad_steps
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import Predictions, Source, read_predictions, write_predictions
from trainer.studies.ensemble import score_ensemble

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


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_data(str(tmp_path / "data"))


@pytest.fixture
def run(tmp_path: Path, data: str) -> str:
    return write_run(str(tmp_path / "run"), data)


def test_report_of_a_run_is_written_in_its_folder(run: str, data: str) -> None:
    path = write_report([run])
    assert path == f"{run}/report.html"
    page = storage.read_bytes(path).decode()
    assert page.lstrip().startswith("<!DOCTYPE html>")
    text = Text(page)
    metrics = storage.read_json(f"{run}/predictions/eval.json")
    assert f"mAP {metrics['mAP']:.3f} chance {metrics['chance_mAP']:.3f}" in text
    assert f"mAUC {metrics['mAUC']:.3f} d′ {metrics['d_prime']:.3f}" in text
    assert f"Accuracy {metrics['accuracy']:.3f}" in text
    assert (
        "Training clips 40 40 for evaluation Epochs 3 2 steps skipped Training time 3 min 3 s"
        in text
    )
    assert "86,594,063 parameters, seed 0, recipe tiny" in text
    assert "optimizer betas [0.95, 0.999]" in text
    assert "python 3.11" in text
    assert "train 40 1 h 23 min −5.0000 3.0000 eval 40" in text
    assert "Rejected clips: 3 Stage and reason Clips decode: <b>not audio</b> 2" in text
    assert "fbank 1 min 11 s" in text
    assert data in text
    assert storage.read_json(card_path(data))["fingerprint"] in text
    assert "not finished" not in text
    assert "no longer the one" not in text


def test_selected_epoch_is_shown_besides_the_last(run: str) -> None:
    metrics = storage.read_json(f"{run}/predictions/eval.json")
    best = {**metrics, "name": "eval-best", "weights": "best", "epoch": 2, "accuracy": 0.9753}
    storage.write_json(f"{run}/predictions/eval-best.json", best)
    text = Text(storage.read_bytes(write_report([run])).decode())
    assert f"Accuracy {metrics['accuracy']:.3f}" in text
    assert "eval-best (epoch 2)" in text
    assert "0.9753" in text


def test_page_is_self_contained(run: str) -> None:
    text = report(run)
    for tag, attributes in text.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("#", "data:image/png;base64,")), (tag, value)
        assert "url(" not in (attributes.get("style") or "")
    assert text.all("link") == text.all("iframe") == []
    assert all(image["alt"] for image in text.all("img"))
    nonces = [script.get("nonce") for script in text.all("script") if "type" not in script]
    assert len(nonces) == 2
    policy = text.all("meta")[1]["content"] or ""
    assert f"default-src 'none'; script-src 'nonce-{nonces[0]}'" in policy
    assert nonces[0] == nonces[1]


def test_same_runs_give_the_same_page(run: str, tmp_path: Path) -> None:
    first = storage.read_bytes(write_report([run], output=str(tmp_path / "first.html")))
    assert storage.read_bytes(write_report([run], output=str(tmp_path / "second.html"))) == first


def test_several_runs_are_compared(tmp_path: Path, data: str) -> None:
    runs = [write_run(str(tmp_path / f"seed-{seed}"), data, seed=seed) for seed in range(3)]
    text = report(*runs)
    values = [storage.read_json(f"{run}/predictions/eval.json")["mAP"] for run in runs]
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    assert f"mAP {mean:.3f} ± {spread:.3f} in 3 runs" in text
    assert f"Mean {mean:.4f}" in text
    assert f"Standard deviation {spread:.4f}" in text
    assert "optimizer.lr" not in text
    plots = shown_figures(runs)
    # Each run: what was logged, the epochs' training loss, the evaluation loss.
    assert len(plots["curve-loss"]["data"]) == 9
    assert [line["name"] for line in plots["curve-mAP"]["data"]] == ["seed-0", "seed-1", "seed-2"]
    counts = np.array(plots["confusions"]["data"][0]["customdata"])
    assert counts.sum() == 3 * 40
    assert [mark["name"] for mark in plots["classes"]["data"] if "name" in mark] == [
        "seed-0",
        "seed-1",
        "seed-2",
    ]


def test_runs_of_other_settings_are_compared_and_not_averaged(tmp_path: Path, data: str) -> None:
    """Three seeds of one setting are one group, the run of another setting is the second."""
    runs = [write_run(str(tmp_path / f"seed-{seed}"), data, seed=seed) for seed in range(3)]
    other = write_run(str(tmp_path / "fast"), data, seed=0, lr=1e-3, skill=0.5)
    text = report(*runs, other)
    values = [storage.read_json(f"{run}/predictions/eval.json")["mAP"] for run in (*runs, other)]
    mean, spread = statistics.fmean(values[:3]), statistics.stdev(values[:3])
    assert "Comparison of 4 runs in 2 groups" in text
    assert f"seed-0, seed-1, seed-2 {mean:.4f} ± {spread:.4f}" in text
    assert f"fast {values[3]:.4f} " in text
    assert (
        "Settings that differ. Setting seed-0, seed-1, seed-2 fast optimizer.lr 1e-05 0.001" in text
    )
    assert f"{statistics.fmean(values):.4f}" not in text
    assert "Added up over 3 runs: seed-0, seed-1, seed-2." in text
    plots = shown_figures([*runs, other])
    assert np.array(plots["confusions"]["data"][0]["customdata"]).sum() == 3 * 40
    assert not [part for part in plots["classes"]["data"] if part["type"] == "bar"]
    lines = {line["name"]: line["line"]["color"] for line in plots["curve-mAP"]["data"]}
    dots = [mark for mark in plots["classes"]["data"] if "name" in mark]
    assert {dot["name"]: dot["marker"]["color"] for dot in dots} == lines
    assert lines.keys() == {"seed-0", "seed-1", "seed-2", "fast"}


@pytest.mark.parametrize(
    ("section", "key", "is_one"),
    [
        ("train", "seed", True),
        ("data", "fold", True),
        ("loader", "threads", True),
        ("train", "batch_size", False),
    ],
)
def test_seed_and_fold_and_what_changes_no_score_are_averaged(
    tmp_path: Path, data: str, section: str, key: str, is_one: bool
) -> None:
    runs = [write_run(str(tmp_path / name), data) for name in "ab"]
    info = storage.read_json(f"{runs[0]}/run.json")
    for run, value in zip(runs, (1, 2), strict=True):
        settings = {**info["settings"], section: {key: value}}
        storage.write_json(f"{run}/run.json", info | {"settings": settings})
    text = report(*runs)
    assert ("Standard deviation" in text) is is_one
    assert ("Comparison of 2 runs" in text) is not is_one


def test_published_scores_are_shown_besides_the_runs(tmp_path: Path, data: str) -> None:
    """They are shown once for all runs of a recipe."""
    runs = [write_run(str(tmp_path / f"seed-{seed}"), data, seed=seed) for seed in range(2)]
    for run in runs:
        info = storage.read_json(f"{run}/run.json")
        info["settings"]["published"] = {"mAP": [0.41, 0.43], "mAUC": [0.97], "accuracy": []}
        storage.write_json(f"{run}/run.json", info)
    plots = shown_figures(runs)
    line = plots["curve-mAP"]["data"][-1]
    assert (line["name"], line["x"], line["y"]) == ("published", [1, 2], [0.41, 0.43])
    names = [line["name"] for line in plots["curve-mAUC"]["data"]]
    assert names == ["seed-0", "seed-1", "published"]
    assert "published" not in json.dumps(plots["curve-d-prime"])
    assert "curve-accuracy" not in plots
    text = " ".join(report(*runs).words)
    assert text.count("published for tiny 1 0.4100 0.9700 – –") == 1
    assert text.count("published for tiny 2 0.4300 – – –") == 1


def test_runs_differing_only_in_the_seed_say_so(tmp_path: Path, data: str) -> None:
    runs = [write_run(str(tmp_path / name), data) for name in ("a", "b")]
    info = storage.read_json(f"{runs[1]}/run.json")
    storage.write_json(f"{runs[1]}/run.json", info | {"seed": 7})
    assert "The runs have the same settings, apart from the seed." in report(*runs)


def test_mean_covers_all_runs_or_is_omitted(tmp_path: Path, data: str) -> None:
    """The terminal's table of an ensemble does the same."""
    runs = [write_run(str(tmp_path / f"seed-{seed}"), data, seed=seed) for seed in range(3)]
    metrics = storage.read_json(f"{runs[0]}/predictions/eval.json")
    storage.write_json(f"{runs[0]}/predictions/eval.json", metrics | {"d_prime": None})
    text = report(*runs)
    assert "d′ – Accuracy" in text
    mean = statistics.fmean(
        storage.read_json(f"{run}/predictions/eval.json")["mAP"] for run in runs
    )
    assert f"mAP {mean:.3f} ±" in text


def test_report_says_whether_scores_are_sigmoid_or_softmax_outputs(
    tmp_path: Path, data: str
) -> None:
    runs = [write_run(str(tmp_path / name), data) for name in ("one", "two")]
    assert "Scores are sigmoid outputs." in report(*runs)
    path = f"{runs[1]}/predictions/eval.json"
    storage.write_json(path, {**storage.read_json(path), "scores": "softmax"})
    assert "Scores are sigmoid or softmax outputs." in report(*runs)


def test_imported_run_is_not_compared_by_training_settings(tmp_path: Path, data: str) -> None:
    """Its training settings are defaults that were never used."""
    runs = [write_run(str(tmp_path / name), data) for name in ("own", "imported")]
    for run, lr, loss in zip(runs, (1e-3, 1e-5), ("bce", "ce"), strict=True):
        info = storage.read_json(f"{run}/run.json")
        train = {"epochs": 5, "loss": loss, "scores": {"ce": "sigmoid", "bce": "softmax"}[loss]}
        info["settings"] |= {"schedule": {"lr": lr}, "train": train}
        storage.write_json(f"{run}/run.json", info)
    assert "schedule.lr 0.001 1e-05" in report(*runs)
    info["imported_from"], info["data"]["num_train_clips"] = "model.pth", 0
    storage.write_json(f"{runs[1]}/run.json", info)
    text = report(*runs)
    assert "schedule.lr" not in text
    assert "Standard deviation" not in text
    assert "schedule lr 0.001 –" in text
    assert "train.loss bce ce" in text
    assert "train.scores softmax sigmoid" in text


def test_runs_with_other_classes_are_not_mixed(tmp_path: Path, data: str) -> None:
    other = [[label.upper() for label in labels] for labels in ONE_LABEL]
    sounds = [label.upper() for label in SOUNDS]
    first = write_run(str(tmp_path / "first"), data)
    second = write_run(
        str(tmp_path / "second"), write_data(str(tmp_path / "other"), other, sounds), other, sounds
    )
    info = storage.read_json(f"{second}/run.json")
    info["data"]["fingerprint"] = "e" * 64
    storage.write_json(f"{second}/run.json", info)
    text = report(first, second)
    assert "which are not in this figure (1): second" in text
    assert "second was trained on other data" in text
    plots = shown_figures([first, second])
    assert np.array(plots["confusions"]["data"][0]["customdata"]).sum() == 40


def test_multi_label_data_has_no_confusion_matrix(tmp_path: Path) -> None:
    labels = [*SOUNDS, "never heard", "nor this"]
    clips = [[SOUNDS[number % 4], SOUNDS[(number // 4 + number) % 4]] for number in range(60)]
    clips = [sorted(set(own)) for own in clips]
    data = write_data(str(tmp_path / "data"), clips, labels)
    run = write_run(str(tmp_path / "run"), data, clips, labels)
    text = report(run)
    assert "Some clips have no label or several" in text
    assert "do not count in mAP (2): never heard nor this" in text
    plots = shown_figures([run])
    assert "confusions" not in plots
    bars = plots["classes"]["data"][0]
    per_class = storage.read_json(f"{run}/predictions/eval.json")["per_class"]
    expected = {entry["label"]: entry for entry in per_class if entry["AP"] is not None}
    assert len(bars["x"]) == 4
    assert bars["x"] == sorted(bars["x"], reverse=True)
    for value, (label, positives) in zip(bars["x"], bars["customdata"], strict=True):
        assert value == pytest.approx(expected[label]["AP"], rel=1e-5)
        assert positives == str(expected[label]["num_positives"])


def test_unlabelled_clips_have_no_scores_and_a_note(tmp_path: Path) -> None:
    unlabelled = [["rain"] if number % 2 == 0 else [] for number in range(12)]
    data = write_data(str(tmp_path / "data"), unlabelled)
    run = write_run(str(tmp_path / "run"), data, unlabelled)
    page = report(run)
    text = " ".join(page.words)
    assert text.count("run: no clip of eval has a label") == 1
    assert "No evaluated clip has a label, so no class" in text
    assert "No evaluated clip has a label, so none can be right" in text
    assert "0.000" not in text.partition("Curves")[0]


def test_unfinished_run_says_what_is_missing(tmp_path: Path, data: str) -> None:
    run = write_run(
        str(tmp_path / "run"), data, num_epochs=1, is_finished=False, has_predictions=False
    )
    text = report(run)
    assert "run is not finished: its numbers are those of 1 epoch so far." in text
    assert "With one epoch there is one point per metric" in text
    assert "Accuracy is undefined in every epoch" in text
    assert "There are no predictions yet; they are written after the last evaluation" in text
    assert "No clips can be shown. There are no predictions yet" in text
    assert "last epoch" in text


def test_run_without_a_finished_epoch_is_reported(tmp_path: Path, data: str) -> None:
    run = write_run(str(tmp_path / "run"), data, num_epochs=0, has_predictions=False)
    storage.remove(f"{run}/history.json")
    text = report(run)
    assert "run is not finished: no epoch is complete yet." in text
    assert "there are no curves" in text
    assert "mAP – mAUC – d′ – Accuracy –" in text


def test_missing_data_set_is_stated(tmp_path: Path, run: str, data: str) -> None:
    Path(data).rename(tmp_path / "elsewhere")
    text = report(run)
    assert f"The data set can no longer be read: {data}: not a complete data set" in text
    assert "No clips can be shown. The data set can no longer be read" in text
    assert "How long the data took to prepare is not known" in text
    assert "confusions" in shown_figures([run])


def test_missing_shards_are_stated(run: str, data: str) -> None:
    storage.remove(f"{data}/shards/all-00000.tar")
    assert "No clips can be shown. The data set's shards cannot be read" in report(run)


def test_changed_data_set_is_noticed(run: str, data: str) -> None:
    write_data(data, plan_fingerprint="another")
    assert "The data set at this path is no longer the one the run was trained on" in report(run)


def test_runs_on_other_data_have_no_mean(tmp_path: Path, run: str, data: str) -> None:
    other = write_run(str(tmp_path / "other"), data, seed=1)
    notice = "evaluated on different data sets or splits, so their scores cannot be compared"
    text = report(run, other)
    assert notice not in text
    assert "Standard deviation" in text
    info = storage.read_json(f"{other}/run.json")
    for changes in ({"eval_split": "test"}, {"fingerprint": "0" * 64}):
        storage.write_json(f"{other}/run.json", {**info, "data": {**info["data"], **changes}})
        text = report(run, other)
        assert notice in text
        assert "Standard deviation" not in text
    storage.write_json(f"{other}/run.json", info)
    scored = replace(read_predictions(other, "eval"), name="train")
    metrics = evaluate_scores(scored.targets, scored.scores, scored.labels)
    write_predictions(other, scored, metrics)
    for path in Path(other, "predictions").glob("eval.*"):
        path.unlink()
    assert notice in report(run, other), "one run is scored on train"


def test_mean_scores_of_all_epochs_are_an_evaluation(run: str) -> None:
    assert "mean of the scores of all epochs" not in report(run)
    history = storage.read_json(f"{run}/history.json")
    for name in ("mAP", "mAUC", "d_prime", "accuracy"):
        history["epochs"][-1][f"cumulative_{name}"] = 0.4321
    storage.write_json(f"{run}/history.json", history)
    assert "eval, mean of the scores of all epochs 40 0.4321 0.4321" in report(run)


def test_missing_or_damaged_runs_are_refused(tmp_path: Path, run: str) -> None:
    with refused(tmp_path / "nothing-here", "run.json"):
        write_report([run, str(tmp_path / "nothing-here")])
    with refused("report", "no run", remedy=True):
        write_report([])
    Path(run, "history.json").write_text("{")
    with refused(f"{run}/history.json", "damaged", remedy="command"):
        write_report([run])
    Path(run, "run.json").write_text("{")
    with refused(f"{run}/run.json", "damaged", "JSON", remedy=True):
        write_report([run])
    storage.write_json(f"{run}/run.json", {"format_version": 99})
    with refused(run, "version 99"):
        write_report([run])


def test_missing_predictions_come_with_their_command(run: str) -> None:
    for path in storage.list_files(f"{run}/predictions"):
        storage.remove(path)
    advice = f"its predictions on eval are missing; `evaluate {run}` makes them."
    text = " ".join(report(run).words)
    assert text.count(advice) == 2
    assert "yet" not in text


def test_page_never_replaces_other_files(run: str, tmp_path: Path) -> None:
    before = storage.read_bytes(f"{run}/run.json")
    with refused("--out", f"{run}/run.json", ".html", remedy=True):
        write_report([run], output=f"{run}/run.json")
    assert storage.read_bytes(f"{run}/run.json") == before
    folder = tmp_path / "pages.html"
    folder.mkdir()
    with refused(folder, "directory"):
        write_report([run], output=str(folder))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("history.json", "{}"),
        ("history.json", "[]"),
        ("history.json", '{"steps": [], "epochs": [{}], "finished": true}'),
        ("history.json", '{"steps": [1], "epochs": [], "finished": true}'),
        ("predictions/eval.json", ""),
        ("predictions/eval.json", "{}"),
        ("predictions/eval.json", "[]"),
        ("divergence.jsonl", "{"),
    ],
)
def test_damaged_files_are_named(run: str, name: str, content: str) -> None:
    storage.write_bytes(f"{run}/{name}", content.encode())
    with refused(f"{run}/{name}", "damaged", remedy=True):
        write_report([run])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("steps.1.step", 0),
        ("steps.1.epoch", -1),
        ("steps.1.lr", -0.1),
        ("steps.1.clips_per_s", -400.0),
        ("steps.1.loss", "0.5"),
        ("epochs.0.epoch", -1),
        ("epochs.0.train_s", -61.0),
        ("epochs.0.mAP", 1.5),
        ("epochs.0", None),
        ("steps", {}),
        ("finished", 1),
        ("format_version", 2),
    ],
)
def test_value_that_no_run_has_is_named(run: str, place: str, value: object) -> None:
    history = storage.read_json(f"{run}/history.json")
    *parents, last = [int(key) if key.isdecimal() else key for key in place.split(".")]
    entry = history
    for key in parents:
        entry = entry[key]
    entry[last] = value
    storage.write_json(f"{run}/history.json", history)
    with refused(f"{run}/history.json", place, remedy="command"):
        write_report([run])


def test_scores_of_other_classes_than_the_run_are_named(run: str) -> None:
    document = storage.read_json(f"{run}/run.json")
    document["data"]["labels"].pop()
    storage.write_json(f"{run}/run.json", document)
    with refused(f"{run}/predictions/eval.json", "classes", remedy="restore"):
        write_report([run])


def test_skipped_steps_are_shown(tmp_path: Path, data: str) -> None:
    """The run has stopped in its first epoch, so nothing else is shown."""
    run = write_run(
        str(tmp_path / "run"), data, num_epochs=0, is_finished=False, has_predictions=False
    )
    write_bad_steps(
        run,
        [
            SkippedStep(step=step, epoch=1, loss="nan", grad_norm=0.5 * step + 1e-9)
            for step in range(3, 13)
        ],
    )
    text = report(run)
    assert "10 steps skipped" in text
    assert "run: 10 steps were skipped, as the loss or the gradient was no finite number" in text
    assert "run 3 1 nan 1.5 run 4 1 nan 2 run 5 1 nan 2.5" in text
    assert "run 7 1 nan 3.5" in text
    assert "run 8 1 nan" not in text
    write_bad_steps(run, [SkippedStep(step=3, epoch=1, loss="nan", grad_norm="1.5")])
    assert "1 step skipped" in report(run)
    write_bad_steps(run, [])
    assert "were skipped" not in report(run)


def test_ensemble_folder_reports_its_members(tmp_path: Path, data: str) -> None:
    output = str(tmp_path / "ens")
    members = [write_run(f"{output}/seed-{seed}", data, seed=seed) for seed in range(3)]
    outside = write_run(str(tmp_path / "other"), data, seed=3)
    assert member_paths(output) == members  # one that is not scored yet
    result = score_ensemble([*members[:2], outside], "eval", output)
    assert member_paths(output) == [*members[:2], outside]
    assert write_report([output]) == f"{output}/report.html"
    text = report(output)
    assert "Training report of 3 runs" in text
    assert f"Ensemble eval {result.ensemble['mAP']:.4f}" in text
    assert "Ensemble" not in report(*members)
    assert "Training report of 3 runs" in report(output, members[0])
    for damaged in ({"runs": ["seed-0"]}, {"runs": 3}, ["seed-0"]):
        storage.write_json(f"{output}/ensemble.json", damaged)
        with refused(f"{output}/ensemble.json", "damaged", remedy="command"):
            write_report([output])


def test_several_ensembles_are_named_by_their_folders(tmp_path: Path, data: str) -> None:
    folders = [str(tmp_path / name) for name in ("small", "large")]
    for seed, folder in enumerate(folders):
        score_ensemble([write_run(f"{folder}/seed-{seed}", data, seed=seed)], "eval", folder)
    text = report(*folders)
    assert "Ensemble small eval" in text
    assert "Ensemble large eval" in text
    assert "Ensemble eval" in report(folders[0])


def test_folder_with_ensemble_and_folds_reports_both(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/ensemble.json", {"runs": ["seed-0", "fold-1"]})
    storage.write_json(f"{tmp_path}/cross_validation.json", {"runs": ["fold-1", "fold-2"]})
    expected = [f"{tmp_path}/{name}" for name in ("seed-0", "fold-1", "fold-2")]
    assert member_paths(str(tmp_path)) == expected


def test_cross_validation_folder_reports_its_folds(tmp_path: Path, data: str) -> None:
    output = str(tmp_path / "folds")
    runs = [write_run(f"{output}/fold-{fold}", data, seed=fold) for fold in (1, 2)]
    storage.write_json(f"{output}/cross_validation.json", {"runs": ["fold-2"]})
    assert member_paths(output) == [runs[1]]
    text = report(output)
    assert "Training report of" not in text
    assert "Ensemble" not in text


def test_runs_and_data_in_a_bucket_are_reported(s3: str) -> None:
    data = write_data(f"{s3}/data")
    text = report(write_run(f"{s3}/run", data))
    assert f"{s3}/run" in text
    assert len(text.all("img")) == examples.NUM_RIGHT + examples.NUM_WRONG


def test_examples_match_the_scores(run: str, data: str) -> None:
    predictions = make_predictions(np.random.default_rng(0), ONE_LABEL, SOUNDS, 2.0)
    shown = examples.make_examples(predictions, open_dataset(data))
    assert len({clip.clip_id for clip in shown}) == len(shown) == 12
    for clip in shown:
        row = predictions.ids.index(clip.clip_id)
        number = int(clip.clip_id.removeprefix("clip-"))
        assert list(clip.labels) == ONE_LABEL[number]
        assert clip.spectrogram.duration_s == pytest.approx((FRAMES + number) / 100)
        assert clip.spectrogram.num_mels == NUM_MELS
        best = SOUNDS[int(predictions.scores[row].argmax())]
        assert clip.tags[0].label == best
        assert clip.tags[0].score == pytest.approx(float(predictions.scores[row].max()))
        assert clip.is_right == (best in ONE_LABEL[number])
    assert {clip.is_right for clip in shown} == {True, False}


def test_missed_label_is_shown_with_its_rank() -> None:
    labels = [f"class {number}" for number in range(20)]
    targets = np.zeros((1, 20), dtype=np.float32)
    targets[0, [0, 19]] = 1
    scores = np.linspace(1, 0, 20, dtype=np.float32)[None]
    clips = Predictions(
        name="eval",
        ids=["a"],
        labels=labels,
        targets=targets,
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    tags = examples._tags(clips, 0)
    assert [tag.rank for tag in tags] == [1, 2, 3, 4, 5, 20]
    assert [tag.is_true for tag in tags] == [True, False, False, False, False, True]


@given(
    targets=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=25),
    num_right=st.integers(0, 5),
    num_wrong=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_chosen_rows_are_right_wrong_and_independent_of_order(
    targets: list[tuple[bool, ...]], num_right: int, num_wrong: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct scores, so that there are ties.
    scores = rng.integers(0, 4, (len(targets), 3)).astype(np.float32) / np.float32(4)
    clips = Predictions(
        name="eval",
        ids=[f"{number:02d}" for number in range(len(targets))],
        labels=["a", "b", "c"],
        targets=np.array(targets, dtype=np.float32).reshape(-1, 3),
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    rows = examples.choose_rows(clips, num_right=num_right, num_wrong=num_wrong)
    usable = [row for row, own in enumerate(targets) if 0 < sum(own) < 3]
    right = {row for row in usable if targets[row][int(scores[row].argmax())]}
    assert len(set(rows)) == len(rows) == min(len(usable), num_right + num_wrong)
    assert set(rows) <= set(usable)
    num_wrong_usable = len(usable) - len(right)
    assert len(set(rows) - right) >= min(num_wrong, num_wrong_usable)
    assert len(set(rows) & right) >= min(num_right, len(right))
    order = rng.permutation(len(targets))
    shuffled = replace(
        clips,
        ids=[clips.ids[row] for row in order],
        targets=clips.targets[order],
        scores=clips.scores[order],
    )
    again = examples.choose_rows(shuffled, num_right=num_right, num_wrong=num_wrong)
    assert [shuffled.ids[row] for row in again] == [clips.ids[row] for row in rows]


def test_most_confidently_wrong_clip_comes_first() -> None:
    scores = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], dtype=np.float32)
    targets = np.array([[0, 1], [0, 1], [0, 1], [1, 0]], dtype=np.float32)
    clips = Predictions(
        name="eval",
        ids=list("abcd"),
        labels=["x", "y"],
        targets=targets,
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce"),
    )
    assert examples.choose_rows(clips, num_right=2, num_wrong=2) == [1, 0, 2, 3]


@given(true=st.lists(st.integers(0, 3), min_size=1, max_size=40), seed=st.integers(0, 99))
def test_confusions_count_each_clip_once(true: list[int], seed: int) -> None:
    scores = np.random.default_rng(seed).random((len(true), 4), dtype=np.float32)
    clips = Predictions(
        name="eval",
        ids=[str(number) for number in range(len(true))],
        labels=list(SOUNDS),
        targets=np.eye(4, dtype=np.float32)[true],
        scores=scores,
        common=np.zeros(4, dtype=bool),
        source=Source(loss="bce"),
    )
    counts = examples.confusion_counts(clips)
    assert counts is not None
    expected = np.zeros((4, 4), dtype=int)
    for row, number in enumerate(true):
        expected[number, int(scores[row].argmax())] += 1
    assert (counts == expected).all()
    clips.targets[0] = 0
    assert examples.confusion_counts(clips) is None


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-1e3, 1e3)), min_size=1, max_size=60),
    max_points=st.integers(1, 20),
)
def test_thinned_curves_keep_their_mean(values: list[float | None], max_points: int) -> None:
    means, length = figures.thinned(values, max_points)
    assert len(means) <= max_points
    for number, mean in enumerate(means):
        defined = [
            value for value in values[number * length : (number + 1) * length] if value is not None
        ]
        if defined:
            assert mean == pytest.approx(statistics.fmean(defined), rel=1e-4, abs=1e-3)
        else:
            assert mean is None


def test_long_history_is_thinned(tmp_path: Path, data: str) -> None:
    run = write_run(str(tmp_path / "run"), data, num_epochs=1)
    history = make_history(
        np.random.default_rng(0), 1, is_finished=True, steps_per_epoch=5 * figures.MAX_POINTS - 3
    )
    storage.write_json(f"{run}/history.json", history)
    plots = shown_figures([run])
    logged = plots["curve-loss"]["data"][0]
    assert len(logged["x"]) == len(logged["y"]) == figures.MAX_POINTS
    assert logged["x"][:2] == [5, 10]
    assert logged["x"][-1] == 5 * figures.MAX_POINTS - 3
    assert len(plots["curve-lr"]["data"][0]["x"]) == figures.MAX_POINTS
    assert "(means of 5)" in report(run)


def logged(schedule: ScheduleSettings, *ends: int, factor: float = 1.0) -> figures.RunCurves:
    """Points at these steps of an epoch of 20 steps each; the second half at a lowered rate."""
    steps = []
    for number, end in enumerate(ends):
        epoch = (end - 1) // 20 + 1
        rate = learning_rate(schedule, step=end - 1, epoch=epoch)
        lowered = rate * (factor if 2 * number >= len(ends) else 1.0)
        steps.append(CurvePoint(step=end, epoch=epoch, lr=lowered))
    return figures.RunCurves(name="run", steps=steps, epochs=[], schedule=schedule)


@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_learning_rate_curve_equals_every_step(factor: float) -> None:
    """It holds for sparse logging and for a rate lowered after a divergence."""
    schedule = ScheduleSettings(
        lr=1e-3, warmup_steps=7, warmup_every_steps=1, decay_after_epochs=(1, 2)
    )
    rates = figures.step_rates(logged(schedule, 5, 10, 20, 25, 40, 60, factor=factor))
    expected = [
        learning_rate(schedule, step=step, epoch=step // 20 + 1) * (factor if step >= 20 else 1)
        for step in range(60)
    ]
    at = dict(rates)
    drawn: list[float | None] = []
    for step in range(1, 61):
        drawn.append(at.get(step, drawn[-1] if drawn else None))
    assert drawn == pytest.approx(expected)
    assert rates[-1][0] == 60
    assert len(rates) == 8 + 2 + 1


def test_logged_rates_are_connected_without_a_schedule(run: str) -> None:
    line = shown_figures([run])["curve-lr"]["data"][0]
    assert (line["line"]["shape"], len(line["x"])) == ("linear", 60)
    assert "At the logged steps." in report(run)
    info = storage.read_json(f"{run}/run.json")
    info["settings"] = tiny_recipe().to_json()
    storage.write_json(f"{run}/run.json", info)
    assert shown_figures([run])["curve-lr"]["data"][0]["line"]["shape"] == "hv"
    assert "Learning rate At each step." in report(run)


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=3), min_size=1, max_size=5))
def test_run_names_are_distinct(parts: list[list[str]]) -> None:
    paths = ["/runs/" + "/".join(part) for part in parts]
    names = run_names(paths)
    assert len(set(names)) == len(names)
    if len(set(paths)) == len(paths):
        assert all(path.endswith("/" + name) for path, name in zip(paths, names, strict=True))


def test_run_names_are_as_short_as_possible() -> None:
    assert run_names(["s3://bucket/x/run"]) == ["run"]
    assert run_names(["/x/seed-0/run", "/x/seed-1/run"]) == ["seed-0/run", "seed-1/run"]
    assert run_names(["/x/run", "/x/run"]) == ["run (1)", "run (2)"]


def test_many_classes_keep_a_full_confusion_matrix() -> None:
    labels = [f"a rather long label that ends in its number {number}" for number in range(80)]
    counts = np.eye(80, dtype=np.int64) * 3
    plot = examples.confusion_plot(counts, labels)
    cells = plot.figure["data"][0]
    assert len(set(cells["x"])) == 80
    assert np.array(cells["z"]).shape == (80, 80)
    assert plot.height_px < 700


def test_figures_cannot_end_their_script_element(run: str) -> None:
    page = storage.read_bytes(write_report([run])).decode()
    start = page.index('id="figures">') + len('id="figures">')
    # The figures do hold tags: those of the texts shown on hovering.
    assert "<b>" in shown_figures([run])["classes"]["data"][0]["hovertemplate"]
    assert not set(page[start : page.index("</script>", start)]) & set("<>&")


@pytest.fixture(scope="module")
def browser() -> Iterator[OfflineBrowser]:
    with open_browser() as started:
        yield started


def open_report(browser: OfflineBrowser, path: str) -> OpenPage:
    opened = browser.open(Path(path))
    wait_until(opened.page, "document.documentElement.dataset.drawn > 0")
    return opened


@pytest.fixture(scope="module")
def hostile_page(browser: OfflineBrowser, tmp_path_factory: pytest.TempPathFactory) -> OpenPage:
    """Two runs with hostile labels and names, open in a browser."""
    folder = tmp_path_factory.mktemp("hostile")
    labels = list(HOSTILE)
    clips = [[labels[number // 2 % len(labels)]] for number in range(140)]
    data = write_data(str(folder / "data"), clips, labels)
    names = ("<b>run</b> & %{x}", "<img src=x onerror=alert(3)>")
    runs = [
        write_run(str(folder / name), data, clips, labels, seed=seed, recipe=HOSTILE[seed])
        for seed, name in enumerate(names)
    ]
    return open_report(browser, write_report(runs, output=str(folder / "report.html")))


def test_page_fetches_nothing_and_raises_no_error(hostile_page: OpenPage) -> None:
    assert hostile_page.requests == []
    assert hostile_page.errors == []
    assert hostile_page.dialogs == []


def test_labels_stay_text_in_the_page(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    assert page.locator("script").count() == 3
    assert page.locator("main a:not([href^='#']), main b, main u").count() == 0
    assert page.locator("img:not([src^='data:image/png;base64,'])").count() == 0
    cells = page.locator("#classes tbody th").all_text_contents()
    assert sorted(" ".join(text.split()) for text in cells) == sorted(
        " ".join(label.split()) for label in HOSTILE
    )


def test_labels_stay_text_in_the_figures(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    ticks = page.locator("[data-figure=classes] .ytick text").all_text_contents()
    expected = {label if len(label) <= 24 else label[:23].rstrip() + "…" for label in HOSTILE}
    assert {" ".join(text.split()) for text in ticks} == {
        " ".join(text.split()) for text in expected
    }
    # plotly.js makes a link or a styled span of the tags that it reads.
    assert page.locator("svg text a, svg tspan[style*='font-weight']").count() == 0
    page.locator("#confusions").scroll_into_view_if_needed()
    page.evaluate(
        """() => Plotly.Fx.hover(document.querySelector('[data-figure=classes]'),
                                 [{curveNumber: 0, pointNumber: 0}])"""
    )
    hover = page.locator("[data-figure=classes] .hoverlayer").text_content() or ""
    best = page.locator("#classes tbody th").first.text_content() or ""
    assert best[:20] in hover


def test_every_figure_is_drawn(hostile_page: OpenPage) -> None:
    drawn = hostile_page.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[data-figure]')].map((box) => {
            const size = box.querySelector('.main-svg').getBoundingClientRect();
            return [box.dataset.figure, {
                width: size.width, height: size.height,
                lines: box.querySelectorAll('.scatterlayer .js-line').length,
                bars: box.querySelectorAll('.barlayer .point path').length,
                cells: box.querySelectorAll('.heatmaplayer image').length,
                marks: box.querySelectorAll('.scatterlayer .point').length,
            }];
        }))"""
    )
    assert set(drawn) >= {"curve-loss", "curve-lr", "curve-mAP", "classes", "confusions"}
    assert all(box["width"] > 200 and box["height"] > 80 for box in drawn.values())
    assert drawn["curve-loss"]["lines"] == 6
    assert drawn["curve-lr"]["lines"] == drawn["curve-mAP"]["lines"] == 2
    assert drawn["classes"]["bars"] == len(HOSTILE)
    assert drawn["classes"]["marks"] == 3 * len(HOSTILE)
    assert drawn["confusions"]["cells"] == 1
    assert drawn["class-counts"]["bars"] == 2 * len(HOSTILE)
    assert drawn["durations"]["bars"] == 4


def test_plotly_accepts_the_figures(hostile_page: OpenPage) -> None:
    problems = hostile_page.page.evaluate(
        """() => Object.entries(JSON.parse(document.getElementById('figures').textContent))
            .flatMap(([key, figure]) => (Plotly.validate(figure.data, figure.layout) ?? [])
                .map((problem) => `${key}: ${problem.msg}`))"""
    )
    assert problems == []


def test_run_can_be_hidden(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    lines = page.locator("[data-figure=curve-mAP] .js-line")
    assert lines.count() == 2
    button = page.locator("button[data-run]").first
    button.click()
    wait_until(page, "document.querySelectorAll('[data-figure=curve-mAP] .js-line').length === 1")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    wait_until(page, "document.querySelectorAll('[data-figure=curve-mAP] .js-line').length === 2")


def test_page_fits_a_phone_and_dark_mode(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    colour = "getComputedStyle(document.querySelector('[data-figure=classes] .ytick text')).fill"
    light = page.evaluate(colour)
    try:
        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        wait_until(page, f"{colour} !== '{light}'")
        wait_until(page, "document.documentElement.scrollWidth <= 390")
    finally:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_figures_fit_the_printed_page(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    width = "document.querySelector('[data-figure=classes] .main-svg').clientWidth"
    wait_until(page, f"{width} > 900")
    page.evaluate(
        """() => matchMedia('print').addEventListener('change', (media) => {
            if (media.matches) window.printed = [...document.querySelectorAll('.plot')].map(
                (box) => [box.clientWidth, box.querySelector('.main-svg').clientWidth]);
        })"""
    )
    page.pdf(format="A4")
    printed = page.evaluate("window.printed")
    assert printed
    assert all(0 < figure <= box < 900 for box, figure in printed)
    wait_until(page, f"{width} > 900")


def test_hundreds_of_classes_are_drawn_in_a_scrolling_box(
    browser: OfflineBrowser, tmp_path: Path
) -> None:
    labels = [f"{sound}, number {number}" for number in range(132) for sound in SOUNDS][:527]
    rng = np.random.default_rng(0)
    clips = [sorted({labels[index] for index in rng.integers(0, 527, 3)}) for _ in range(800)]
    data = write_data(str(tmp_path / "data"), clips, labels)
    run = write_run(str(tmp_path / "run"), data, clips, labels)
    num_scored = 527 - storage.read_json(f"{run}/predictions/eval.json")["num_classes_left_out"]
    opened = open_report(browser, write_report([run]))
    page = opened.page
    assert page.locator("[data-figure=classes] .barlayer .point").count() == num_scored
    assert page.locator("[data-figure=classes] .ytick").count() == num_scored
    heights = page.evaluate(
        """() => { const box = document.querySelector('[data-figure=classes]').parentElement;
                   return [box.clientHeight, box.scrollHeight]; }"""
    )
    assert heights[0] <= 640 < heights[1]
    assert opened.errors == opened.requests == []
    page.close()


def test_confusions_scroll_on_a_phone(browser: OfflineBrowser, tmp_path: Path) -> None:
    labels = [f"sound number {number}" for number in range(40)]
    clips = [[label] for label in labels * 4]
    data = write_data(str(tmp_path / "data"), clips, labels)
    run = write_run(str(tmp_path / "run"), data, clips, labels)
    opened = browser.open(Path(write_report([run])), width_px=400, height_px=800, is_phone=True)
    page = opened.page
    wait_until(page, "document.documentElement.dataset.drawn > 0")
    box = page.locator("[data-figure=confusions]").locator("..")
    box.evaluate("box => box.scrollIntoView({block: 'start'})")
    place = box.bounding_box()
    assert place is not None
    swipe_left(page, place["x"] + 250, place["y"] + 200, by_px=150)
    scrolled = "document.querySelector('[data-figure=confusions]').parentElement.scrollLeft"
    wait_until(page, f"{scrolled} > 100")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def test_constant_metrics_have_a_suitable_axis(browser: OfflineBrowser, run: str) -> None:
    history = storage.read_json(f"{run}/history.json")
    for epoch in history["epochs"]:
        epoch |= {"mAP": 1.0, "accuracy": 0.5}
    storage.write_json(f"{run}/history.json", history)
    opened = open_report(browser, write_report([run]))
    for key in ("mAP", "accuracy"):
        axis = f"document.querySelector('[data-figure=curve-{key}]')._fullLayout.yaxis.range"
        wait_until(opened.page, f"{axis}?.length === 2")
        low, high = opened.page.evaluate(axis)
        assert -0.02 <= low < high <= 1.02
    opened.page.close()
