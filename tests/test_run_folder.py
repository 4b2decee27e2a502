"""The run folder: which run may be carried on in it, and TensorBoard's logs."""

import errno
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.summary.writer import event_file_writer

from pipeline import storage
from pipeline.dataset import PreparedDataset
from pipeline.errors import UserError
from tests.prepared import make_prepared, tiny_recipe
from tests.runs import assert_events_match_history, read_events
from trainer.clips import select_training_data
from trainer.loop import train
from trainer.recipe import Recipe
from trainer.run_folder import (
    check_folder,
    check_same_run,
    describe_run,
    is_finished,
    read_history,
    read_run,
)
from trainer.tensorboard_log import TensorBoardLog
from trainer.world import World
from trainer.writer import alone_in, check_writer, remove_unfinished, take_over


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")))


def begin(run: str, recipe: Recipe, dataset: PreparedDataset) -> None:
    data = select_training_data(dataset, recipe.data)
    storage.write_json(f"{run}/run.json", describe_run(recipe, dataset, data, 1000))


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
    document = read_run(str(tmp_path))
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
    assert read_history(str(tmp_path)) == {"steps": [], "epochs": [], "finished": False}


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
    document = read_run(str(tmp_path))
    del document[key]
    storage.write_json(f"{tmp_path}/run.json", document)
    assert_damaged(str(tmp_path), dataset)


def assert_damaged(run: str, dataset: PreparedDataset) -> None:
    message = rf"^{run}/run\.json: (damaged, .*put it back|no whole JSON|must hold a JSON object)"
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
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "history.json").write_text(content)
    with pytest.raises(UserError, match=r"history\.json: damaged; the command that trained"):
        read_history(str(tmp_path))
    assert is_finished(str(tmp_path)) is False
    assert f"{tmp_path}/history.json: damaged" in capsys.readouterr().err


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    with alone_in(run):
        with pytest.raises(UserError, match=f"{run}: another process trains there"), alone_in(run):
            pass
        with alone_in(f"{run}-2"):
            pass
    with alone_in(run):
        pass


def test_a_folder_without_locks_is_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", flock)
    with alone_in(str(tmp_path)):
        assert f"note: {tmp_path}: not locked (Operation not" in capsys.readouterr().err


def test_the_last_to_take_a_folder_over_writes_there(tmp_path: Path) -> None:
    run = str(tmp_path)
    first = take_over(run)
    check_writer(run, first)
    second = take_over(run)
    check_writer(run, second)
    with pytest.raises(UserError, match=f"{run}: another `train` has begun there"):
        check_writer(run, first)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "null", "[]"])
def test_who_writes_into_a_folder_may_be_forgotten(tmp_path: Path, content: str | None) -> None:
    token = take_over(str(tmp_path))
    (tmp_path / "writer.json").unlink()
    if content is not None:
        (tmp_path / "writer.json").write_text(content)
    check_writer(str(tmp_path), token)


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    kept = ["run.json", ".lock", "checkpoints/step-00000004.pt", "ray/.notes", ".hidden.1.file"]
    left = [".run.json.12.0123abcd", "checkpoints/.step-00000005.pt.12345.0123abcd"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in left)


# TensorBoard


def stopping(steps: list[int]) -> Callable[[dict[str, Any]], None]:
    def report(values: dict[str, Any]) -> None:
        if steps and values["step"] == steps[0]:
            steps.pop(0)
            raise KeyboardInterrupt

    return report


@pytest.fixture
def a_clock_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at TensorBoard's clock is a second later.

    It reads files in the order of their names, which begin with the second they are of.
    """
    seconds = count(1_000_000_000)
    clock = SimpleNamespace(time=lambda: float(next(seconds)))
    monkeypatch.setattr(event_file_writer, "time", clock)


@pytest.mark.usefixtures("a_clock_of_seconds")
def test_the_curves_are_whole_after_restarts(dataset: PreparedDataset, tmp_path: Path) -> None:
    """No point is missing or there twice, though steps were done twice."""
    recipe = tiny_recipe(train={"log_every_steps": 1, "epochs": 2, "checkpoint_every_s": 0.01})
    steps = [2, 5, 6, 9]
    report = stopping(steps)
    while steps:
        with pytest.raises(KeyboardInterrupt):
            train(recipe, dataset, str(tmp_path), world=World(), report=report)
    train(recipe, dataset, str(tmp_path), world=World())
    history = read_history(str(tmp_path))
    assert [point["step"] for point in history["steps"]] == list(range(1, 13))
    assert_events_match_history(tmp_path)


@pytest.mark.usefixtures("a_clock_of_seconds")
def test_what_a_killed_process_wrote_is_there_up_to_its_checkpoint(tmp_path: Path) -> None:
    """Without `close`, as after `kill -9`: a checkpoint's points were flushed before it."""
    killed = TensorBoardLog(str(tmp_path), 0)
    killed.add(1, {"train/loss": 0.5, "train/lr": None})
    killed.add(2, {"train/loss": 0.25})
    killed.flush()
    killed.add(3, {"train/loss": 7.0})
    killed.flush()
    again = TensorBoardLog(str(tmp_path), 2)
    again.add(3, {"train/loss": 0.125})
    again.close()
    assert read_events(tmp_path / "tensorboard") == {
        "train/loss": [(1, 0.5), (2, 0.25), (3, 0.125)]
    }
    killed.close()


def test_curves_of_a_run_in_a_bucket(s3: str, tmp_path: Path) -> None:
    log = TensorBoardLog(f"{s3}/runs/one", 0)
    for step in (1, 2):
        log.add(step, {"train/loss": step / 8})
        log.flush()
        for path in storage.list_files(f"{s3}/runs/one/tensorboard"):
            (tmp_path / path.rpartition("/")[2]).write_bytes(storage.read_bytes(path))
        assert len(read_events(tmp_path)["train/loss"]) == step
    log.close()
    assert read_events(tmp_path) == {"train/loss": [(1, 0.125), (2, 0.25)]}
