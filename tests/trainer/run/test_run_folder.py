"""The run folder: which run may be carried on in it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.data.clips import select_training_data
from trainer.recipe.recipe import Recipe
from trainer.run.history import History, is_finished, read_history
from trainer.run.run_folder import check_folder, check_same_run, describe_run, read_run, write_run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def begin(run: str, recipe: Recipe, dataset: PreparedDataset) -> None:
    data = select_training_data(dataset, recipe.data)
    write_run(run, describe_run(recipe, dataset, data, 1000))


def test_a_run_is_carried_on_with_its_own_settings(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe(data={"mean": -5.0, "std": 3.0})
    run = str(tmp_path)
    assert check_same_run(run, recipe, dataset) is False
    begin(run, recipe, dataset)
    assert check_same_run(run, recipe, dataset) is True


def test_how_batches_are_loaded_may_change(dataset: PreparedDataset, tmp_path: Path) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    changed = tiny_recipe(
        loader={"threads": 7, "batches_ahead": 1, "cache_mb": 0},
        model={"compile": True, "checkpoint_activations": True},
        train={"sharding": "shard", "micro_batch_size": 2, "log_every_steps": 1},
    )
    assert check_same_run(str(tmp_path), changed, dataset) is True


def test_a_setting_that_came_later_had_its_default(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    document = read_run(str(tmp_path)).to_json()
    del document["settings"]["train"]["select_by"]
    del document["settings"]["published"]
    storage.write_json(f"{tmp_path}/run.json", document)
    assert check_same_run(str(tmp_path), tiny_recipe(), dataset) is True
    with pytest.raises(UserError, match=r"with train.select_by = '', not 'mAP'"):
        check_same_run(str(tmp_path), tiny_recipe(train={"select_by": "mAP"}), dataset)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epochs": 9}}, r"with train\.epochs = 3, not 9; give another --out"),
        ({"train": {"seed": 1}}, r"with train\.seed = 0, not 1"),
        ({"data": {"mean": 1.0, "std": 2.0}}, r"with data\.mean = None, not 1\.0"),
        ({"schedule": {"decay_after_epochs": [1]}}, r"with .*epochs = \[2\], not \[1\]"),
    ],
)
def test_other_settings_are_refused(
    dataset: PreparedDataset, tmp_path: Path, changes: dict[str, dict[str, Any]], message: str
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    with pytest.raises(UserError, match=rf"^{tmp_path}: the run was started {message}"):
        check_same_run(str(tmp_path), tiny_recipe(**changes), dataset)


def test_other_data_are_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    begin(str(tmp_path / "run"), tiny_recipe(), dataset)
    other = make_prepared(str(tmp_path / "data"), seed=1)
    with pytest.raises(UserError, match="run: the run was trained on other data; give another"):
        check_same_run(str(tmp_path / "run"), tiny_recipe(), other)
    # The same data in another place is the same data.
    moved = make_prepared(str(tmp_path / "moved"))
    assert check_same_run(str(tmp_path / "run"), tiny_recipe(), moved) is True


def test_not_a_run(dataset: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run there \(no run\.json\)"):
        read_run(str(tmp_path))
    storage.write_json(f"{tmp_path}/run.json", {"format_version": 99})
    with pytest.raises(UserError, match="has format version 99, this program reads 1"):
        read_run(str(tmp_path))
    assert read_history(str(tmp_path)) == History(finished=False)


def test_checkpoints_without_their_run_are_not_carried_on(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    storage.write_bytes(f"{tmp_path}/checkpoints/step-00000006.pt", b"")
    with pytest.raises(UserError, match=r"has checkpoints of a run, but no run\.json"):
        check_same_run(str(tmp_path), tiny_recipe(), dataset)


def test_a_data_set_is_no_place_for_a_run(dataset: PreparedDataset) -> None:
    with pytest.raises(
        UserError, match=r"a prepared data set is there \(card\.json\); give another"
    ):
        check_same_run(dataset.path, tiny_recipe(), dataset)


@pytest.mark.parametrize("own", ["run.json", "ensemble.json", "cross_validation.json"])
def test_a_folder_is_of_one_kind(tmp_path: Path, own: str) -> None:
    (tmp_path / own).write_text("")
    check_folder(str(tmp_path), own)
    (tmp_path / "ast.safetensors").write_text("")
    with pytest.raises(UserError, match="an exported model is there"):
        check_folder(str(tmp_path), own)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"format_version": 1}', '{"format_version": 1, "data": 3}']
)
def test_a_damaged_run_is_named(dataset: PreparedDataset, tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert_damaged(str(tmp_path), dataset)


@pytest.mark.parametrize("key", ["recipe", "settings", "data"])
def test_a_run_that_lacks_something_is_named(
    dataset: PreparedDataset, tmp_path: Path, key: str
) -> None:
    begin(str(tmp_path), tiny_recipe(), dataset)
    document = read_run(str(tmp_path)).to_json()
    del document[key]
    storage.write_json(f"{tmp_path}/run.json", document)
    assert_damaged(str(tmp_path), dataset)


def assert_damaged(run: str, dataset: PreparedDataset) -> None:
    message = rf"^{run}/run\.json: damaged: .*; put it back"
    with pytest.raises(UserError, match=message):
        read_run(run)
    with pytest.raises(UserError, match=message):
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
        '{"steps": [], "epochs": [{"epoch": 1, "step": 2, "mAP": null, "accuracy": "a"}], '
        '"finished": true}',
    ],
)
def test_a_damaged_history_is_named_and_the_run_not_finished(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(UserError, match=r"history\.json: damaged: .*; the command that trained"):
        read_history(str(tmp_path))
    assert is_finished(str(tmp_path)) is False
    assert f"{tmp_path}/history.json: damaged" in caplog.text
