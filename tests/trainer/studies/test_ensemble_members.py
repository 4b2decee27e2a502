"""What can be a member, and what a folder with an ensemble holds."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.members import TARGETS, make_member, write_member
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.recipe.recipe import Recipe
from trainer.report.runs import load_run
from trainer.report.write import write_report
from trainer.run.history import read_history
from trainer.run.run_folder import read_run, write_run
from trainer.scores.predictions import read_metrics, read_predictions
from trainer.studies.ensemble.cumulative import write_cumulative
from trainer.studies.ensemble.members import (
    Member,
    MemberClips,
    lacks_predictions,
    make_members,
    member_names,
)
from trainer.studies.ensemble.paper import paper_ensembles
from trainer.studies.ensemble.plan import with_seed
from trainer.studies.ensemble.result import (
    EnsembleResult,
    is_ensemble,
    read_ensemble,
    read_result,
)
from trainer.studies.ensemble.score import Choosing, score_ensemble
from trainer.studies.ensemble.table import make_table
from trainer.training.loop import train
from trainer.training.world import World

OWN = MemberClips(name="eval")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def runs(dataset: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two finished runs of two epochs."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [f"{folder}/seed-{seed}" for seed in (1, 2)]
    for seed, path in enumerate(paths, start=1):
        recipe = with_seed(tiny_recipe(train={"epochs": 2}, schedule={"lr": 1e-5}), seed)
        train(recipe, dataset, path, world=World())
    return paths


def shown(result: EnsembleResult) -> str:
    text = io.StringIO()
    Console(file=text, width=200).print(make_table(result))
    return " ".join(text.getvalue().split())


def with_strides(recipe: Recipe, stride: int) -> Recipe:
    return replace(recipe, model=replace(recipe.model, stride_time=stride))


def test_ensembles_of_the_paper_are_found() -> None:
    """Ensemble-S: seeds of one setting; Ensemble-M: also those with other strides, nothing else."""
    base = tiny_recipe()
    seeds = {f"seed-{seed}": with_seed(base, seed) for seed in (0, 1, 2)}
    strides = {f"stride-{stride}": with_strides(base, stride) for stride in (10, 12, 14)}
    longer = replace(base, train=replace(base.train, epochs=9))
    assert paper_ensembles(seeds) == {"Ensemble-S": list(seeds)}
    both = {"Ensemble-S": list(seeds), "Ensemble-M": [*seeds, *strides]}
    assert paper_ensembles({**seeds, **strides}) == both
    assert paper_ensembles({"long": longer, **seeds, **strides}) == both
    # What changes no score does not tell members apart.
    other = replace(base, loader=replace(base.loader, threads=7), train=seeds["seed-2"].train)
    assert paper_ensembles({"seed-0": base, "other": other}) == {"Ensemble-S": ["seed-0", "other"]}
    assert paper_ensembles(strides) == {}
    assert paper_ensembles({}) == {}


def test_table_names_the_papers_ensembles(runs: list[str], tmp_path: Path) -> None:
    result = score_ensemble(make_members(runs), OWN, str(tmp_path))
    (named,) = result.paper
    assert (named.name, named.members) == ("Ensemble-S", ["seed-1", "seed-2"])
    assert named.scores == result.ensemble
    assert "ensemble (Ensemble-S)" in shown(result)
    members = make_members(runs, ["last", "cumulative"])
    write_cumulative(members, OWN)
    result = score_ensemble(members, OWN, str(tmp_path))
    assert "Ensemble-S: seed-1, seed-2 │" in shown(result)


def test_cumulative_scores_are_those_of_the_history(runs: list[str], tmp_path: Path) -> None:
    member = Member(run=runs[0], outputs="cumulative")
    write_cumulative([member], OWN)
    assert not lacks_predictions(member, OWN)
    metrics = read_metrics(runs[0], "eval-cumulative").metrics
    last = read_history(runs[0]).epochs[-1]
    assert metrics.mAP == pytest.approx(last.cumulative_mAP, abs=1e-9)
    assert metrics.accuracy == pytest.approx(last.cumulative_accuracy, abs=1e-9)
    assert metrics.mAP != pytest.approx(last.mAP, abs=1e-9)
    shown_by_report = load_run(runs[0], "one").all_evaluations
    assert [name for name in shown_by_report if "cumul" in name or "mean of" in name] == [
        "eval-cumulative"
    ]
    command = ["ensemble", "--runs", *runs, "--outputs", "cumulative", "--out", str(tmp_path)]
    assert ray_job.main(command) == 0
    members = read_ensemble(str(tmp_path)).members
    assert list(members) == ["seed-1 cumulative", "seed-2 cumulative"]
    expected = np.mean([read_predictions(run, "eval-cumulative").scores for run in runs], axis=0)
    np.testing.assert_allclose(read_predictions(str(tmp_path), "eval").scores, expected, atol=1e-6)


def test_cumulative_scores_are_unknown_on_other_clips(runs: list[str]) -> None:
    with refused(runs[0], "'eval'", "'train'", remedy="--outputs"):
        write_cumulative([Member(run=runs[0], outputs="cumulative")], MemberClips(name="train"))


def test_names_of_members_are_unique() -> None:
    members = make_members(["/a/seed-0", "/a/seed-1"], ["last", "best"])
    assert member_names(members) == ["seed-0", "seed-0 best", "seed-1", "seed-1 best"]
    assert member_names(make_members(["/a/run", "/b/run"])) == ["/a/run", "/b/run"]


def test_predictions_of_an_earlier_end_count_as_missing(runs: list[str], tmp_path: Path) -> None:
    run = str(tmp_path / "seed-1")
    for name in ("run.json", "history.json"):
        storage.write_bytes(f"{run}/{name}", storage.read_bytes(f"{runs[0]}/{name}"))
    member = Member(run=run)
    assert lacks_predictions(member, OWN)
    last = read_history(run).epochs[-1].step
    own = read_predictions(runs[0], "eval")
    for step, is_missing in ((last - 1, True), (last, False)):
        write_member(Path(run), replace(own, source=replace(own.source, checkpoint_step=step)))
        assert lacks_predictions(member, OWN) is is_missing
    assert lacks_predictions(member, OWN, precision="bfloat16")
    assert lacks_predictions(member, OWN, function="softmax")
    assert not lacks_predictions(member, OWN, precision="float32", function="sigmoid")


def write_members(folder: Path, seeds: Sequence[int]) -> list[str]:
    """Members with predictions on `eval` and on `choice`."""
    paths = []
    for seed in seeds:
        member = make_member(seed)
        paths.append(write_member(folder / f"seed-{seed}", member))
        other = make_member(100 + seed)
        ids = [f"choice-{number}" for number in range(len(other.ids))]
        write_member(folder / f"seed-{seed}", replace(other, name="choice", ids=ids))
    return paths


def test_choice_is_reported_on_both_sets(tmp_path: Path) -> None:
    paths = write_members(tmp_path, [1, 2, 3, 4])
    output = str(tmp_path)
    choosing = Choosing(num_picks=3, clips=MemberClips(name="choice"))
    result = score_ensemble(make_members(paths), OWN, output, choosing=choosing)
    assert read_result(f"{output}/ensemble.json") == result
    choice = result.choice
    assert choice is not None
    assert len(choice.picks) == 3
    assert choice.ensemble["mAP"] == pytest.approx(max(pick.score for pick in choice.picks))
    best = max(figures["mAP"] or 0 for figures in choice.members.values())
    assert (choice.ensemble["mAP"] or 0) >= best

    ensemble = read_ensemble(output)
    assert sum(ensemble.weights.values()) == pytest.approx(1)
    assert ensemble.counts == {name: n for name, n in result.counts.items() if n}
    assert 0 < len(ensemble.members) < 4, "this test needs a choice that leaves some out"
    for name, clips in (("eval", result.ensemble), ("choice", choice.ensemble)):
        weighted = sum(
            share * read_predictions(ensemble.members[member].run, name).scores.astype(np.float64)
            for member, share in ensemble.weights.items()
        )
        expected = replace(make_member(0), scores=np.asarray(weighted, dtype=np.float32))
        assert clips["accuracy"] == pytest.approx(
            np.mean(TARGETS[np.arange(len(TARGETS)), expected.scores.argmax(axis=1)])
        )
    everything = score_ensemble(make_members(paths), OWN, str(tmp_path / "all"))
    assert result.all == everything.ensemble
    text = shown(result)
    num_chosen = len(ensemble.members)
    assert f"Ensemble of {num_chosen} of 4 on eval" in text
    assert "on choice, where they were chosen by mAP" in text
    assert f"{choice.all['mAP']:.4f}" in text
    assert f"{everything.ensemble['mAP']:.4f}" in text


def test_ensemble_of_an_older_version_is_a_model(tmp_path: Path) -> None:
    paths = write_members(tmp_path, [1, 2])
    score_ensemble(make_members(paths), OWN, str(tmp_path))
    document = storage.read_json(f"{tmp_path}/ensemble.json")
    kept = ("format_version", "runs", "name", "diverged", "members", "mean", "std", "ensemble")
    storage.write_json(f"{tmp_path}/ensemble.json", {key: document[key] for key in kept})
    ensemble = read_ensemble(str(tmp_path))
    assert ensemble.weights == {"seed-1": 0.5, "seed-2": 0.5}
    assert [member.run for member in ensemble.members.values()] == paths
    assert is_ensemble(str(tmp_path))
    assert not is_ensemble(paths[0])
    with refused(paths[0], "ensemble.json", remedy=True):
        read_ensemble(paths[0])


def test_overlap_of_chosen_and_reported_clips_is_refused(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ensemble", "--runs", *runs, "--out", str(tmp_path), "--choose", "2"]
    assert ray_job.main([*command, "--choose-on", "eval"]) == 1
    assert_error_line(capsys.readouterr().err, "--choose-on", "20 of its 20 clips", "'eval'")
    options = ["--split", "train", "--choose-on", "train", "--choose-fold", "2"]
    assert ray_job.main([*command, *options]) == 1
    assert_error_line(capsys.readouterr().err, "--choose-on", "20 of its 20 clips", "'train'")


def test_ensemble_is_evaluated_from_stored_predictions(
    runs: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No Ray starts, as all members have predictions; the report shows the new clips, too."""
    monkeypatch.setattr("cluster.session.connect", None)
    output = str(tmp_path / "both")
    assert ray_job.main(["ensemble", "--runs", *runs, "--out", output, "--average", "ranks"]) == 0
    for run in runs:  # scores on another split
        own = read_predictions(run, "eval")
        clips = make_prepared_ids(run)
        write_member(Path(run), replace(own, name="train-fold1", ids=clips))
    capsys.readouterr()
    assert ray_job.main(["evaluate", output, "--split", "train", "--fold", "1"]) == 0
    printed = capsys.readouterr()
    assert_names(printed.out, "seed-1", "seed-2", "ensemble", f"{output}/predictions/train-fold1")
    source = read_metrics(output, "train-fold1").source
    assert (source.num_members, source.average) == (2, "ranks")
    page = Path(write_report([output])).read_text()
    assert "averages the ranks" in page
    assert "train-fold1" in page
    assert ray_job.main(["evaluate", output, "--weights", "best"]) == 1
    assert_error_line(capsys.readouterr().err, "--weights", "members")


def make_prepared_ids(run: str) -> list[str]:
    """The ids of fold 1 of the split `train` of the run's data."""
    from pipeline.dataset.prepared import open_dataset

    ids: list[str] = open_dataset(read_run(run).data.path).select("train", fold=1)["id"].to_pylist()
    return ids


def test_run_of_another_data_set_is_named_by_its_own_names(runs: list[str]) -> None:
    """Its predictions on the same clips have a longer name."""
    clips = MemberClips(name="eval", names={runs[0]: "eval", runs[1]: "eval-of-data-12345678"})
    assert clips.predictions_of(Member(run=runs[0], outputs="ema")) == "eval-ema"
    assert clips.predictions_of(Member(run=runs[1])) == "eval-of-data-12345678"
    assert clips.predictions_of(Member(run="/other")) == "eval"


def test_remaining_steps_order_the_runs(
    dataset: PreparedDataset, runs: list[str], tmp_path: Path
) -> None:
    """By the newest checkpoint, which may be damaged."""
    from trainer.run.remaining import remaining_steps

    recipe = tiny_recipe(train={"epochs": 2}, schedule={"lr": 1e-5})
    total = read_history(runs[0]).epochs[-1].step
    assert remaining_steps(recipe, dataset, str(tmp_path)) == total
    assert remaining_steps(recipe, dataset, runs[0]) == 0
    write_run(str(tmp_path), read_run(runs[0]))
    storage.write_bytes(f"{tmp_path}/checkpoints/step-00000005.pt", b"")
    assert remaining_steps(recipe, dataset, str(tmp_path)) == total - 5
