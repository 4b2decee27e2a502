"""A search from the command line, whose runs are trained in this process, without Ray."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ray_job
from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from trainer.on_ray import tune as ray_tune
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import Recipe
from trainer.report.runs import diverged_paths, member_paths
from trainer.run.history import read_history
from trainer.run.run_folder import read_run
from trainer.studies.search.best import write_best
from trainer.studies.search.record import SearchRecord, mark_stopped, read_record
from trainer.studies.search.result import ranked
from trainer.training.loop import train
from trainer.training.world import World

RECIPE = tiny_recipe(
    train={"epochs": 1, "loss": "ce"},
    schedule={"lr": 2e-3, "warmup_steps": 0, "decay_after_epochs": []},
    published={"accuracy": [0.9]},
)
RATES = "schedule.lr=1e-4,1e-3,1e-2"
GRID = ("--space", RATES, "--strategy", "grid")
DIVERGING = ("--space", "train.max_gradient_norm=1e-9,100.0", "--strategy", "grid")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Two folds to train on, and a split `eval`, on which the recipe reports."""
    return make_prepared(str(tmp_path_factory.mktemp("data")))


class Search:
    """The command, with what it trained."""

    def __init__(self, folder: Path, dataset: PreparedDataset) -> None:
        self.output = str(folder / "search")
        self.dataset = dataset
        self.recipe = str(write_recipe(folder / "tiny.toml", RECIPE))
        self.trained: list[str] = []

    def run(self, *options: str) -> int:
        self.trained.clear()
        command = ["search", self.recipe, "--data", self.dataset.path, "--out", self.output]
        return ray_job.main([*command, *options])

    @property
    def record(self) -> SearchRecord:
        record = read_record(self.output)
        assert record is not None
        return record

    def path(self, number: int) -> str:
        return f"{self.output}/{self.record.trials[number - 1].folder}"

    def train_here(
        self, recipes: Mapping[str, Recipe], data: str, *_: Any, **__: Any
    ) -> dict[str, Exception]:
        failures: dict[str, Exception] = {}
        for run_path, recipe in recipes.items():
            self.trained.append(run_path.rpartition("/")[2])
            try:
                train(recipe, open_dataset(data), run_path, world=World())
            except UserError as error:
                failures[run_path] = error
        return failures


@pytest.fixture
def search(dataset: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    made = Search(tmp_path, dataset)
    monkeypatch.setattr(ray_tune, "train_unfinished", made.train_here)
    return made


def states(record: SearchRecord) -> list[str]:
    return [run.state for run in record.trials]


def test_best_of_a_grid(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.run(*GRID) == 0
    record = search.record
    assert (record.chosen_by, record.recipe_evaluates_on) == ("train-fold1", "eval")
    assert (record.metric, record.are_reported) == ("accuracy", False)
    for run in record.trials:
        (result,) = read_history(f"{search.output}/{run.folder}").epochs
        assert run.scores["accuracy"] == result.accuracy
        assert (run.state, run.epochs, run.scored_epoch) == ("finished", 1, 1)
        assert read_run(f"{search.output}/{run.folder}").data.eval_name == "train-fold1"
    accuracies = [run.scores["accuracy"] or 0.0 for run in record.trials]
    assert record.best == accuracies.index(max(accuracies)) + 1

    shown = capsys.readouterr()
    rows = [line.split("│")[1:6] for line in shown.out.splitlines() if line.startswith("│")]
    best = f"{max(accuracies):.4f}"
    assert [row[2].strip() for row in rows] == [
        f"{value:.4f}" for value in sorted(accuracies, reverse=True)
    ]
    assert "train-fold1" in shown.out
    assert shown.out.splitlines()[-1] == f"{search.output}/best.toml"

    # The recipe as it is, but for the rate: it reports on `eval`, and has no published scores.
    expected = RECIPE.to_json()
    expected["schedule"]["lr"] = record.trials[record.best - 1].settings["schedule.lr"]
    expected["published"]["accuracy"] = []
    assert load_recipe(f"{search.output}/best.toml").to_json() == expected
    text = Path(search.output, "best.toml").read_text()
    assert_names(text, best, "train-fold1", "eval", "schedule.lr")
    assert member_paths(search.output) == [search.path(number) for number in (1, 2, 3)]


def test_equal_scores_are_told_apart_by_the_other_metric(search: Search) -> None:
    assert search.run(*GRID) == 0
    record = search.record
    scores = ((0.5, 0.6), (0.5, 0.7), (0.4, 0.9))
    trials = [
        replace(run, scores={**run.scores, "accuracy": accuracy, "mAP": precision})
        for run, (accuracy, precision) in zip(record.trials, scores, strict=True)
    ]
    assert [run.number for run in ranked(replace(record, trials=trials))] == [2, 1, 3]


def test_same_command_resumes(search: Search) -> None:
    """A finished run is left alone, one that was interrupted goes on, one that is gone is made."""
    assert search.run(*GRID) == 0
    before = search.record
    assert search.run(*GRID) == 0
    assert search.trained == []
    assert search.record == before

    history = storage.read_json(f"{search.path(2)}/history.json")
    storage.write_json(f"{search.path(2)}/history.json", history | {"finished": False})
    assert search.run(*GRID) == 0
    assert search.trained == [before.trials[1].folder]
    assert search.record == before


def test_damaged_curves_are_written_again(search: Search) -> None:
    assert search.run(*GRID) == 0
    before = search.record
    storage.write_bytes(f"{search.path(3)}/history.json", b"{")
    assert search.run(*GRID) == 0
    assert search.trained == [before.trials[2].folder]
    assert search.record == before


def test_more_samples_go_on_with_a_search(search: Search) -> None:
    assert search.run("--samples", "2") == 0
    first = search.record
    assert first.space == {"schedule.lr": "log:0.0002:0.02"}
    assert search.run("--samples", "3") == 0
    assert search.trained == [search.record.trials[2].folder]
    assert search.record.trials[:2] == first.trials
    assert search.run("--samples", "1") == 0
    assert search.trained == []
    assert states(search.record) == ["finished"] * 3, "none is dropped"


def test_space_of_few_values_needs_no_number_of_samples(search: Search) -> None:
    assert search.run("--space", RATES) == 0
    rates = {run.settings["schedule.lr"] for run in search.record.trials}
    assert rates == {1e-4, 1e-3, 1e-2}


def test_settings_drawn_before_are_kept(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of SciPy may draw others."""
    assert search.run("--samples", "1") == 0
    document = storage.read_json(f"{search.output}/search.json")
    document["trials"][0] |= {"settings": {"schedule.lr": 0.00321}}
    storage.write_json(f"{search.output}/search.json", document)
    run = read_run(search.path(1))
    run.settings["schedule"]["lr"] = 0.00321
    storage.write_json(f"{search.path(1)}/run.json", run.to_json())
    assert search.run("--samples", "1") == 0
    assert search.record.trials[0].settings == {"schedule.lr": 0.00321}


def test_stopped_and_diverged_runs_are_not_trained_again(search: Search) -> None:
    assert search.run(*GRID) == 0
    for number in (1, 2):
        path = f"{search.path(number)}/history.json"
        storage.write_json(path, storage.read_json(path) | {"finished": False})
    mark_stopped(search.path(1), 1)
    document = storage.read_json(f"{search.output}/search.json")
    document["trials"][1] |= {"state": "diverged", "reason": "too fast"}
    storage.write_json(f"{search.output}/search.json", document)
    assert search.run(*GRID) == 0
    assert search.trained == []
    record = search.record
    assert states(record) == ["stopped", "diverged", "finished"]
    assert record.best == 3, "only finished runs"
    assert record.trials[0].scores["accuracy"] is not None
    assert record.trials[1].scores == {}
    assert diverged_paths(search.output) == [search.path(2)]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (("--space", "schedule.lr=1e-4,1e-3", "--strategy", "grid"), ["--space", "1e-4,1e-3"]),
        (("--samples", "3"), ["--space"]),
        ((*GRID, "--seed", "1"), ["--seed", "0", "1"]),
        ((*GRID, "--fold", "2"), ["train-fold1", "train-fold2"]),
        ((*GRID, "--set", "train.batch_size=5"), ["train.batch_size", "7", "5"]),
    ],
)
def test_other_search_in_the_folder_is_refused(
    search: Search, options: Sequence[str], values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.run(*GRID) == 0
    capsys.readouterr()
    assert search.run(*options) == 1
    assert search.trained == []
    assert_error_line(capsys.readouterr().err, "search", *values, "--out")


def test_loader_may_change_and_table_by_another_metric(search: Search) -> None:
    assert search.run(*GRID) == 0
    assert search.run(*GRID, "--set", "loader.threads=1", "--metric", "mAUC") == 0
    assert search.trained == []
    assert search.record.metric == "mAUC"


def test_run_that_diverges_is_a_row(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.run(*DIVERGING, "--set", "train.max_bad_steps=2") == 0
    record = search.record
    assert states(record) == ["diverged", "finished"]
    assert record.best == 2
    assert_names(record.trials[0].reason, 2)
    assert "diverged: " in " ".join(capsys.readouterr().out.split())
    assert search.run(*DIVERGING, "--set", "train.max_bad_steps=2") == 0
    assert search.trained == []


def test_settings_that_cannot_be_are_a_row(search: Search) -> None:
    """Both ends of the range are possible, and a mask of 100 frames is not, at 64."""
    options = ("--space", "augment.time_mask=8,100", "--strategy", "grid")
    assert search.run(*options) == 0
    assert states(search.record) == ["finished", "failed"]
    assert_names(search.record.trials[1].reason, "augment.time_mask", 64, 100)
    assert search.trained == [search.record.trials[0].folder]


def test_no_run_that_is_finished_is_an_error(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ("--space", "train.max_gradient_norm=1e-9,1e-8", "--strategy", "grid")
    assert search.run(*space, "--set", "train.max_bad_steps=2") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 2
    for number, line in enumerate(lines, start=1):
        assert_error_line(line, search.path(number), 2)
    assert not Path(search.output, "best.toml").exists()
    assert Path(search.output, "search.html").exists()
    # Nothing is trained again, and it is still an error.
    assert search.run(*space, "--set", "train.max_bad_steps=2") == 1
    assert search.trained == []
    assert_error_line(capsys.readouterr().err, search.output, "accuracy")


def test_choosing_by_the_clips_to_report_is_loud(
    search: Search, capsys: pytest.CaptureFixture[str]
) -> None:
    assert search.run(*GRID, "--split", "eval") == 0
    shown = capsys.readouterr()
    assert "warning: eval: " in shown.err
    assert "too good" in " ".join(shown.out.split())
    assert search.record.are_reported
    for name in ("best.toml", "search.html"):
        assert "too good" in Path(search.output, name).read_text()


def test_best_value_at_the_edge_is_said(search: Search, capsys: pytest.CaptureFixture[str]) -> None:
    assert search.run("--space", "schedule.lr=log:1e-7:2e-7:2", "--strategy", "grid") == 0
    assert search.record.edges == ["schedule.lr"]
    assert "warning: schedule.lr: " in capsys.readouterr().err


def test_scores_are_of_the_epoch_whose_weights_are_kept(search: Search) -> None:
    options = (*GRID, "--set", "train.epochs=3", "--set", "train.select_by=mAP")
    assert search.run(*options, "--set", "published.accuracy=[]") == 0
    assert search.record.metric == "mAP"
    for run in search.record.trials:
        curve = [result.mAP or 0.0 for result in read_history(search.path(run.number)).epochs]
        assert run.scores["mAP"] == max(curve)
        assert run.scored_epoch == curve.index(max(curve)) + 1


@pytest.mark.parametrize(
    ("options", "where", "values"),
    [
        (("--space", "schedule.rate=1,2"), "--space schedule.rate=1,2", ["schedule.rate"]),
        (("--space", RATES, "--set", "schedule.lr=1"), "--set schedule.lr=1", ["--space"]),
        ((*GRID, "--samples", "3"), "--samples", ["grid"]),
        (("--first-epoch", "2"), "--first-epoch, --factor", ["asha"]),
        (("--strategy", "asha"), "--strategy asha", ["train.epochs", 1]),
        (
            ("--strategy", "asha", "--factor", "1", "--set", "train.epochs=3"),
            "--factor",
            [1, 2],
        ),
        (
            ("--strategy", "asha", "--space", "train.epochs=2,3"),
            "--space train.epochs",
            ["random"],
        ),
        (("--split", "none"), "data", ["none"]),
        (("--fold", "7"), "data", [7]),
        (("--set", "data.fold=1"), "data", ["train-fold1", "--folds 5"]),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(
    search: Search,
    options: Sequence[str],
    where: str,
    values: list[object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert search.run(*options) == 1
    error = capsys.readouterr().err
    where = search.dataset.path if where == "data" else where
    assert_error_line(error, where, *values)
    assert search.trained == []
    assert not Path(search.output).exists()


def test_folder_of_another_result_is_refused(search: Search) -> None:
    storage.write_json(f"{search.output}/ensemble.json", {})
    assert search.run(*GRID) == 1
    storage.remove(f"{search.output}/ensemble.json")
    assert search.run(*GRID) == 0
    assert storage.held_kind(search.output) == "a search (search.json)"


def test_damaged_record_is_one_line(search: Search) -> None:
    assert search.run(*GRID) == 0
    document = storage.read_json(f"{search.output}/search.json")
    storage.write_json(f"{search.output}/search.json", document | {"strategy": "guess"})
    with refused(f"{search.output}/search.json", "strategy", "'guess'"):
        read_record(search.output)


def test_best_recipe_holds_any_text(search: Search) -> None:
    assert search.run(*GRID) == 0
    odd = 'a"b\\c\u2028\x7fd'
    settings = json.loads(json.dumps(search.record.settings))
    settings["data"]["train_split"] = odd
    record = replace(search.record, settings=settings, data="line\nbreak", recipe="tab\tand\x00")
    path = write_best(search.output, record)
    assert load_recipe(path).data.train_split == odd
