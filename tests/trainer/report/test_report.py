"""The report: what it says of runs, and of what is missing or damaged."""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.dataset.prepared import card_path, open_dataset
from tests.support.errors import refused
from tests.support.reports import (
    FRAMES,
    NUM_MELS,
    ONE_LABEL,
    SOUNDS,
    Text,
    make_predictions,
    report,
    shown_figures,
    write_data,
    write_run,
)
from trainer.checkpoints.progress import SkippedStep
from trainer.report import examples
from trainer.report.runs import member_paths
from trainer.report.write import write_report
from trainer.run.skipped_steps import write_bad_steps
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import read_predictions, write_predictions
from trainer.studies.ensemble.members import MemberClips, make_members
from trainer.studies.ensemble.score import score_ensemble


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
    result = score_ensemble(make_members([*members[:2], outside]), MemberClips(name="eval"), output)
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
        member = write_run(f"{folder}/seed-{seed}", data, seed=seed)
        score_ensemble(make_members([member]), MemberClips(name="eval"), folder)
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
