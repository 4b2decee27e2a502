"""Ensembles: the mean of the scores, and the table of its members."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console
from sklearn.metrics import average_precision_score, roc_auc_score

import ray_job
from pipeline import storage
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.members import NUM_CLIPS, TARGETS, make_member, write_member
from tests.support.prepared import tiny_recipe, write_recipe
from trainer.scores.predictions import Source, read_predictions
from trainer.studies.ensemble.average import average_predictions
from trainer.studies.ensemble.members import MemberClips, make_members
from trainer.studies.ensemble.plan import check_finished, member_recipes
from trainer.studies.ensemble.result import EnsembleResult
from trainer.studies.ensemble.score import score_ensemble
from trainer.studies.ensemble.table import make_table
from trainer.studies.shared import read_runs

RUN: dict[str, Any] = {
    "format_version": 1,
    "recipe": "tiny",
    "settings": {},
    "seed": 0,
    "num_parameters": 1,
    "data": {
        "path": "/data",
        "fingerprint": "0f1e",
        "labels": ["dog", "cat"],
        "eval_name": "eval",
        "mean": -5.0,
        "std": 3.0,
    },
}


def score_runs(paths: list[str], output: str) -> EnsembleResult:
    return score_ensemble(make_members(paths), MemberClips(name="eval"), output)


def figures(scores: NDArray[np.float32]) -> dict[str, float]:
    return {
        "mAP": average_precision_score(TARGETS, scores),
        "mAUC": roc_auc_score(TARGETS, scores),
        "accuracy": float(np.mean(TARGETS[np.arange(NUM_CLIPS), scores.argmax(axis=1)] == 1)),
    }


def test_average_is_the_mean_of_the_scores() -> None:
    members = {f"seed-{seed}": make_member(seed) for seed in (1, 2, 3)}
    average = average_predictions(members)
    expected = np.mean([member.scores.astype(np.float64) for member in members.values()], axis=0)
    np.testing.assert_allclose(average.scores, expected, atol=1e-7)
    assert average.scores.dtype == np.float32
    assert (average.ids, average.labels) == (members["seed-1"].ids, members["seed-1"].labels)
    assert average.source == Source(loss="bce", scores="sigmoid", num_members=3)


def test_average_of_one_member_equals_the_member(tmp_path: Path) -> None:
    member = make_member(1)
    assert np.array_equal(average_predictions({"seed-1": member}).scores, member.scores)
    path = write_member(tmp_path / "seed-1", member)
    score_runs([path], str(tmp_path))
    numbers = storage.read_json(f"{tmp_path}/ensemble.json")
    assert numbers["mean"] == numbers["ensemble"] == numbers["members"]["seed-1"]
    assert numbers["std"] == dict.fromkeys(("mAP", "mAUC", "d_prime", "accuracy"))


@pytest.mark.parametrize(
    ("difference", "changes"),
    [
        ("clips", {"ids": [f"clip-{number}" for number in reversed(range(NUM_CLIPS))]}),
        ("labels", {"labels": ["b", "a", "c"]}),
        ("targets", {"targets": 1 - TARGETS}),
        ("losses", {"source": Source(loss="ce")}),
    ],
)
def test_incompatible_members_are_refused(difference: str, changes: dict[str, Any]) -> None:
    members = {"a": make_member(0), "b": make_member(1), "c": replace(make_member(2), **changes)}
    with refused("", "a and c", "'eval'", difference):
        average_predictions(members)


def test_sigmoid_and_softmax_scores_are_not_averaged() -> None:
    """Predictions of older versions do not name the function, which follows from their loss."""
    old = replace(make_member(0), source=Source(loss="ce"))
    softmax = replace(make_member(1), source=Source(loss="ce", scores="softmax"))
    sigmoid = replace(make_member(2), source=Source(loss="ce", scores="sigmoid"))
    assert average_predictions({"a": old, "b": softmax}).source.scores == "softmax"
    with refused(
        "", "a and b", "softmax and sigmoid", remedy="score b again: `evaluate --scores softmax`"
    ):
        average_predictions({"a": old, "b": sigmoid})


def test_runs_of_equal_name_are_shown_with_their_folders(tmp_path: Path) -> None:
    paths = [write_member(tmp_path / f"{seed}/run", make_member(seed)) for seed in (1, 2)]
    assert list(score_runs(paths, str(tmp_path)).members) == paths
    with refused("", "once", f"{paths[0]} {paths[0]}"):
        score_runs([paths[0], paths[0]], str(tmp_path))


def test_seeds_and_variants_get_their_recipes(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    path = str(write_recipe(tmp_path / "tiny.toml", recipe))
    members = member_recipes(
        path,
        ["train.epochs=5"],
        "runs",
        seeds=[0, 7],
        variants=[["wide", "model.stride_time=12", "train.epochs=3"], ["long", "train.epochs=9"]],
    )
    assert list(members) == ["runs/seed-0", "runs/seed-7", "runs/wide", "runs/long"]
    seeds = [member.train.seed for member in members.values()]
    assert seeds == [0, 7, recipe.train.seed, recipe.train.seed]
    assert [member.train.epochs for member in members.values()] == [5, 5, 3, 9]
    assert [member.model.stride_time for member in members.values()][2:] == [12, 16]


NAME = ["name for its folder", "'.'", "'_'", "'-'"]
"""What an error about the name of a variant says."""


@pytest.mark.parametrize(
    ("changes", "where", "values"),
    [
        ({"seeds": [3, 4, 3]}, "--seeds", ["seed-3", "twice"]),
        ({"seeds": [0, -1]}, "--seeds", ["seed", "got -1"]),
        ({"variants": [["train.epochs=2", "train.seed=3"]]}, "--variant train.epochs=2", NAME),
        ({"variants": [["seed-1", "train.seed=3"]]}, "--variant seed-1", NAME),
        ({"variants": [["../a", "train.seed=3"]]}, "--variant ../a", NAME),
        ({"variants": [["a"]]}, "--variant a", ["settings"]),
        ({"variants": [["a", "train.seed=3"]] * 2}, "--variant a", ["a", "twice"]),
        ({"variants": [["a.json", "train.seed=3"]]}, "--variant a.json", NAME),
        ({"seeds": [3], "variants": [["a", "train.seed=3"]]}, "--variant a", ["same", "seed-3"]),
        (
            {"seeds": [3], "variants": [["a", "data.fold=1"]]},
            "--variant a",
            ["seed-3", "data.eval_split", "data.fold"],
        ),
        ({"variants": [["a", "train.seeds=3"]]}, "--variant a", ["train.seeds=3", "train.seed"]),
    ],
)
def test_invalid_members_are_refused(
    tmp_path: Path, changes: dict[str, Any], where: str, values: list[str]
) -> None:
    path = str(write_recipe(tmp_path / "tiny.toml", tiny_recipe()))
    with refused(where, *values):
        member_recipes(path, [], "runs", **changes)


def test_members_with_other_classes_are_named(tmp_path: Path) -> None:
    runs = [str(tmp_path / name) for name in "ab"]
    for run, labels in zip(runs, (["dog", "cat", "cow"], ["cat", "dog", "cow"]), strict=True):
        storage.write_json(f"{run}/run.json", RUN | {"data": {**RUN["data"], "labels": labels}})
        history = {"steps": [], "epochs": [], "finished": True}
        storage.write_json(f"{run}/history.json", history)
        write_member(Path(run), replace(make_member(0), labels=labels))
    check_finished(runs[:1], "eval")
    with refused(runs[1], runs[0], "class 1 is 'cat', not 'dog'", remedy=True):
        check_finished(runs, "eval")


def test_damaged_history_of_a_member_is_the_only_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write_json(f"{tmp_path}/run.json", RUN)
    storage.write_bytes(f"{tmp_path}/history.json", b"{")
    with refused(tmp_path / "history.json", "damaged", remedy=True):
        check_finished([str(tmp_path)], "eval")
    assert caplog.messages == []


def test_member_without_predictions_is_refused(tmp_path: Path) -> None:
    path = write_member(tmp_path / "seed-1", make_member(1))
    with refused("seed-2", "'eval'", remedy="`evaluate`"):
        score_runs([path, str(tmp_path / "seed-2")], str(tmp_path))


def test_file_and_table_show_members_mean_and_ensemble(tmp_path: Path) -> None:
    members = {f"seed-{seed}": make_member(seed) for seed in (4, 5, 6)}
    paths = [write_member(tmp_path / name, member) for name, member in members.items()]
    result = score_runs(paths, str(tmp_path / "all"))

    numbers = storage.read_json(f"{tmp_path}/all/ensemble.json")
    by_hand = {name: figures(member.scores) for name, member in members.items()}
    mean_scores = np.mean([member.scores for member in members.values()], axis=0)
    assert np.allclose(read_predictions(f"{tmp_path}/all", "eval").scores, mean_scores)
    for figure in ("mAP", "mAUC", "accuracy"):
        values = [scores[figure] for scores in by_hand.values()]
        for name, expected in zip(members, values, strict=True):
            assert numbers["members"][name][figure] == pytest.approx(expected, abs=1e-9)
        assert numbers["mean"][figure] == pytest.approx(np.mean(values), abs=1e-9)
        assert numbers["std"][figure] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
        expected = figures(mean_scores)[figure]
        assert numbers["ensemble"][figure] == pytest.approx(expected, abs=1e-9)
    # Independent errors average out, or this test could not tell an ensemble from a member.
    assert numbers["ensemble"]["mAP"] > max(values["mAP"] for values in by_hand.values())

    text = io.StringIO()
    Console(file=text, width=100).print(make_table(result))
    rows = {
        line.split("│")[1].strip(): line for line in text.getvalue().splitlines() if "│" in line
    }
    assert rows.keys() >= {"seed-4", "seed-5", "seed-6", "mean", "standard deviation", "ensemble"}
    assert f"{numbers['ensemble']['mAP']:.4f}" in rows["ensemble"]
    assert f"{numbers['std']['accuracy']:.4f}" in rows["standard deviation"]
    assert "Ensemble of 3 on eval" in text.getvalue()


def test_members_no_longer_included_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some members are inside the ensemble's folder, others are not."""
    inside = [write_member(tmp_path / "all" / f"seed-{seed}", make_member(seed)) for seed in (0, 1)]
    outside = write_member(tmp_path / "other", make_member(2))
    output = str(tmp_path / "all")
    unfinished = write_member(tmp_path / "unfinished", make_member(3))
    for run in (*inside, outside, unfinished):
        data = {**RUN["data"], "labels": ["a", "b", "c"]}
        storage.write_json(f"{run}/run.json", RUN | {"data": data})
        history = {"steps": [], "epochs": [], "finished": run != unfinished}
        storage.write_json(f"{run}/history.json", history)
    score_runs([*inside, outside], output)
    assert storage.read_json(f"{output}/ensemble.json")["runs"] == ["seed-0", "seed-1", outside]
    assert read_runs(f"{output}/ensemble.json") == [*inside, outside]

    command = ["ensemble", "--runs", inside[1], "--out", output]
    assert ray_job.main(command) == 0
    options = ("--seeds", "--variant", "--runs")
    assert_names(capsys.readouterr().err, f"{inside[0]} {outside}", *options)
    assert ray_job.main(command) == 0
    assert capsys.readouterr().err == ""

    for run, problem in ((unfinished, "not finished"), (f"{tmp_path}/no", "run.json")):
        assert ray_job.main(["ensemble", "--runs", inside[0], run, "--out", output]) == 1
        assert_error_line(capsys.readouterr().err, run, problem)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_damaged_result_names_no_runs(tmp_path: Path, content: str) -> None:
    assert read_runs(f"{tmp_path}/ensemble.json") == []
    storage.write_bytes(f"{tmp_path}/ensemble.json", content.encode())
    assert read_runs(f"{tmp_path}/ensemble.json") == []


def test_metric_missing_in_a_member_has_no_mean(tmp_path: Path) -> None:
    """A perfect member has an infinite d-prime, which is none."""
    perfect = replace(make_member(1), scores=TARGETS * 0.5 + 0.25)
    paths = [
        write_member(tmp_path / "seed-1", perfect),
        write_member(tmp_path / "seed-2", make_member(2)),
    ]
    result = score_runs(paths, str(tmp_path))
    numbers = storage.read_json(f"{tmp_path}/ensemble.json")
    assert numbers["members"]["seed-1"]["d_prime"] is None
    assert numbers["mean"]["d_prime"] is None
    assert numbers["mean"]["mAP"] is not None
    text = io.StringIO()
    Console(file=text, width=100).print(make_table(result))
    assert "-" in next(line for line in text.getvalue().splitlines() if "seed-1" in line)
