"""The run folder: which run may resume in it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from tests.support.errors import assert_names, refused
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.data.clips import select_training_data
from trainer.recipe.recipe import Recipe
from trainer.run.history import History, is_finished, read_history
from trainer.run.run_folder import (
    check_folder,
    check_same_run,
    describe_run,
    first_difference,
    held_out,
    read_run,
    write_run,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def begin(run: str, recipe: Recipe, dataset: PreparedDataset) -> None:
    data = select_training_data(dataset, recipe.data)
    write_run(run, describe_run(recipe, dataset, data, 1000))


def test_run_resumes_only_with_its_own_settings(dataset: PreparedDataset, tmp_path: Path) -> None:
    recipe = tiny_recipe(data={"mean": -5.0, "std": 3.0})
    run = str(tmp_path)
    assert check_same_run(run, recipe, dataset) is False
    begin(run, recipe, dataset)
    assert check_same_run(run, recipe, dataset) is True


@pytest.mark.parametrize(("fold", "expected"), [(0, ("eval", 0)), (2, ("train", 2))])
@pytest.mark.parametrize("is_old", [False, True])
def test_run_knows_the_clips_that_it_holds_out(
    dataset: PreparedDataset, tmp_path: Path, fold: int, expected: tuple[str, int], is_old: bool
) -> None:
    run = str(tmp_path)
    begin(run, tiny_recipe(data={"fold": fold}), dataset)
    document = read_run(run).to_json()
    if is_old:
        del document["data"]["eval_split"], document["data"]["eval_fold"]
    storage.write_json(f"{run}/run.json", document)
    assert held_out(run, read_run(run)) == expected


def test_loading_settings_may_change_on_resume(dataset: PreparedDataset, tmp_path: Path) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    changed = tiny_recipe(
        loader={"threads": 7, "batches_ahead": 1, "cache_mb": 0},
        model={"compile": True, "checkpoint_activations": True},
        train={"sharding": "shard", "micro_batch_size": 2, "log_every_steps": 1},
    )
    assert check_same_run(str(tmp_path), changed, dataset) is True


def test_missing_settings_of_an_old_run_count_as_defaults(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    document = read_run(str(tmp_path)).to_json()
    document["versions"]["ast-ray"] = "0.0.9"
    del document["settings"]["train"]["select_by"]
    del document["settings"]["published"]
    storage.write_json(f"{tmp_path}/run.json", document)
    assert check_same_run(str(tmp_path), tiny_recipe(), dataset) is True
    with refused(tmp_path, "train.select_by = ''", "'mAP'", remedy="--out"):
        check_same_run(str(tmp_path), tiny_recipe(train={"select_by": "mAP"}), dataset)


@pytest.mark.parametrize("missing", ["published", "train.select_by"])
def test_missing_settings_of_a_run_of_this_version_are_damage(
    dataset: PreparedDataset, tmp_path: Path, missing: str
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    document = read_run(str(tmp_path)).to_json()
    section, _, key = missing.partition(".")
    del (document["settings"][section] if key else document["settings"])[key or section]
    storage.write_json(f"{tmp_path}/run.json", document)
    with refused(tmp_path / "run.json", f"settings.{missing}", remedy="restore"):
        check_same_run(str(tmp_path), tiny_recipe(), dataset)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"train": {"epochs": 9}}, ["train.epochs = 3", 9]),
        ({"train": {"seed": 1}}, ["train.seed = 0", 1]),
        ({"data": {"mean": 1.0, "std": 2.0}}, ["data.mean = None", 1.0]),
        ({"schedule": {"decay_after_epochs": [1]}}, ["schedule.decay_after_epochs = [2]", [1]]),
    ],
)
def test_other_settings_are_refused(
    dataset: PreparedDataset,
    tmp_path: Path,
    changes: dict[str, dict[str, Any]],
    values: list[object],
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    with refused(tmp_path, *values, remedy="--out"):
        check_same_run(str(tmp_path), tiny_recipe(**changes), dataset)


def test_other_data_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    begin(str(tmp_path / "run"), tiny_recipe(), dataset)
    other = make_prepared(str(tmp_path / "data"), seed=1)
    with refused(tmp_path / "run", "other data", remedy="--out"):
        check_same_run(str(tmp_path / "run"), tiny_recipe(), other)
    # The same data at another path are accepted.
    moved = make_prepared(str(tmp_path / "moved"))
    assert check_same_run(str(tmp_path / "run"), tiny_recipe(), moved) is True


def test_folders_without_a_readable_run_are_refused(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    with refused(tmp_path, "run.json"):
        read_run(str(tmp_path))
    storage.write_json(f"{tmp_path}/run.json", {"format_version": 99})
    with refused(tmp_path, "version 99", 1):
        read_run(str(tmp_path))
    assert read_history(str(tmp_path)) == History(finished=False)


def test_checkpoints_without_run_json_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    storage.write_bytes(f"{tmp_path}/checkpoints/step-00000006.pt", b"")
    with refused(tmp_path, "checkpoints", "run.json", remedy="--out"):
        check_same_run(str(tmp_path), tiny_recipe(), dataset)


def test_data_set_as_run_folder_is_refused(dataset: PreparedDataset) -> None:
    with refused(dataset.path, "card.json", remedy="--out"):
        check_same_run(dataset.path, tiny_recipe(), dataset)


def test_data_set_in_place_of_a_run_is_named(dataset: PreparedDataset) -> None:
    with refused(dataset.path, "card.json", remedy="run"):
        read_run(dataset.path)


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (["a", "b", "c"], []),
        (["a", "x", "c"], ["class 2", "'x'", "'b'"]),
        (["a", "c", "b"], ["class 2", "'c'", "'b'"]),
        (["a", "b"], ["class 3", "missing", "'c'", "2 classes", 3]),
        (["a", "b", "c", "d"], ["class 4", "'d'", "missing"]),
    ],
)
def test_first_class_that_differs_is_named(labels: list[str], values: list[object]) -> None:
    difference = first_difference(labels, ["a", "b", "c"])
    assert bool(difference) == bool(values)
    assert_names(difference, *values)


@pytest.mark.parametrize("own", ["run.json", "ensemble.json", "cross_validation.json"])
def test_folder_holds_only_one_kind_of_result(tmp_path: Path, own: str) -> None:
    (tmp_path / own).write_text("")
    check_folder(str(tmp_path), own)
    (tmp_path / "ast.safetensors").write_text("")
    with refused(tmp_path, "ast.safetensors", remedy="--out"):
        check_folder(str(tmp_path), own)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"format_version": 1}', '{"format_version": 1, "data": 3}']
)
def test_damaged_run_json_is_named(dataset: PreparedDataset, tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert_damaged(str(tmp_path), dataset)


@pytest.mark.parametrize("key", ["recipe", "settings", "data"])
def test_incomplete_run_json_is_named(dataset: PreparedDataset, tmp_path: Path, key: str) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    document = read_run(str(tmp_path)).to_json()
    del document[key]
    storage.write_json(f"{tmp_path}/run.json", document)
    assert_damaged(str(tmp_path), dataset)


def assert_damaged(run: str, dataset: PreparedDataset) -> None:
    with refused(f"{run}/run.json", "damaged", remedy=True):
        read_run(run)
    with refused(f"{run}/run.json", "damaged", remedy=True):
        check_same_run(run, tiny_recipe(), dataset)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"steps": [], "epochs": [{}], "finished": true}',
        '{"steps": [], "epochs": [], "finished": "no"}',
        '{"steps": {}, "epochs": [], "finished": true}',
        '{"steps": [{"step": null, "epoch": 1}], "epochs": [], "finished": true}',
        '{"steps": [{"step": 1, "epoch": 1, "loss": "nan"}], "epochs": [], "finished": true}',
        '{"steps": [{"step": 2, "epoch": 1}, {"step": 1, "epoch": 1}], "finished": true}',
        '{"epochs": [{"epoch": 2, "step": 2, "mAP": null, "accuracy": null}], "finished": true}',
        '{"steps": [], "epochs": [{"epoch": 1, "step": 2, "mAP": null, "accuracy": "a"}], '
        '"finished": true}',
    ],
)
def test_damaged_history_is_named_and_leaves_the_run_unfinished(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.json").write_text(content)
    with refused(tmp_path / "history.json", "damaged", remedy="command"):
        read_history(str(tmp_path))
    assert is_finished(str(tmp_path)) is False
    assert f"{tmp_path}/history.json: damaged" in caplog.text
