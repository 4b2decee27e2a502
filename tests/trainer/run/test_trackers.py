"""Trackers: the same curves as the run's own, once each, through stops and failures; no secrets."""

import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.errors import refused
from tests.support.prepared import make_prepared, tiny_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.history import read_history
from trainer.run.run_progress import RunProgress
from trainer.run.trackers import checks, follow
from trainer.run.trackers.client import Row, TrackedRun
from trainer.training.loop import train
from trainer.training.world import World

NUM_STEPS = 12
SECRET = "hunter2hunter2hunter2hunter2hunter2hunt2"


class FakeClient:
    """Keeps what it is sent; fails while `is_down`."""

    is_down = False
    opened: list[tuple[TrackedRun, str]]
    rows: list[Row]
    ends: list[bool]

    def open(self, run: TrackedRun, tracker_id: str) -> str:
        self._check()
        self.opened.append((run, tracker_id))
        return tracker_id or "first"

    def send(self, rows: Sequence[Row]) -> None:
        self._check()
        self.rows += rows

    def close(self, *, finished: bool) -> None:
        self.ends.append(finished)

    def _check(self) -> None:
        if self.is_down:
            raise ConnectionError(f"no answer from http://me:{SECRET}@tracker:5000, {SECRET}")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    client = FakeClient()
    client.opened, client.rows, client.ends = [], [], []
    monkeypatch.setattr(follow, "MLflowClient", lambda: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    return client


def tracked(tracker: str = "mlflow") -> Recipe:
    return tiny_recipe(
        train={"log_every_steps": 1, "epochs": 2, "checkpoint_every_s": 0, "tracker": tracker}
    )


def stop_at(step: int) -> Any:
    def report(progress: RunProgress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def assert_rows_are_the_history(rows: Sequence[Row], run: Path) -> None:
    history = read_history(str(run))
    losses = [(row.step, row.values["train/loss"]) for row in rows if "train/loss" in row.values]
    assert losses == [(point.step, point.loss) for point in history.steps]
    assert len(losses) == NUM_STEPS
    scores = [(row.step, row.values["eval/mAP"]) for row in rows if "eval/mAP" in row.values]
    assert scores == [(result.step, result.mAP) for result in history.epochs]
    assert [row.step for row in rows] == sorted(row.step for row in rows)


def test_each_point_is_sent_once_and_to_the_same_run_after_stops(
    client: FakeClient, tmp_path: Path
) -> None:
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    for step in (2, 5, 9):
        with pytest.raises(KeyboardInterrupt):
            train(tracked(), data, str(run), world=World(), report=stop_at(step))
    train(tracked(), data, str(run), world=World())
    assert_rows_are_the_history(client.rows, run)
    assert [tracker_id for _, tracker_id in client.opened] == ["", "first", "first", "first"]
    assert client.ends == [False, False, False, True]
    shown, _ = client.opened[0]
    assert shown.path == str(run)
    assert shown.settings["train.epochs"] == 2
    assert not any(name.startswith("published.") for name in shown.settings)


def test_tracker_that_is_given_later_gets_the_whole_run(client: FakeClient, tmp_path: Path) -> None:
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tracked(""), data, str(run), world=World(), report=stop_at(8))
    assert client.opened == []
    train(tracked(), data, str(run), world=World())
    assert_rows_are_the_history(client.rows, run)


def test_tracker_that_fails_is_one_warning_without_secrets(
    client: FakeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    client.is_down = True
    caplog.set_level(logging.INFO)
    train(tracked(), data, str(run), world=World())
    [record] = [record for record in caplog.records if "train.tracker" in record.message]
    assert record.levelno == logging.WARNING
    assert "mlflow" in record.message
    assert "http://tracker:5000" in record.message
    assert SECRET not in caplog.text
    assert len(read_history(str(run)).steps) == NUM_STEPS


def test_what_a_tracker_missed_is_sent_once_it_answers(
    client: FakeClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    caplog.set_level(logging.INFO)

    def report(progress: RunProgress) -> None:
        client.is_down = progress.step < 8

    client.is_down = True
    train(tracked(), data, str(run), world=World(), report=report)
    assert_rows_are_the_history(client.rows, run)
    assert "answers again" in caplog.text


def test_end_of_a_run_does_not_wait_for_ever(
    client: FakeClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = threading.Event()
    monkeypatch.setattr(client, "send", lambda rows: answer.wait())
    monkeypatch.setattr(follow, "CLOSE_S", 0.2)
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    train(tracked(), data, str(run), world=World())
    answer.set()
    assert "0.2 s" in caplog.text


def test_damaged_record_begins_anew(client: FakeClient, tmp_path: Path) -> None:
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tracked(), data, str(run), world=World(), report=stop_at(4))
    (run / "tracker.json").write_text("{")
    client.rows = []
    train(tracked(), data, str(run), world=World())
    assert client.opened[1][1] == ""
    assert_rows_are_the_history(client.rows, run)


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_missing_client_is_refused_with_its_command(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data = make_prepared(f"{tmp_path}/data")
    command = f"pip install 'ast-ray[{tracker}]'"
    with refused("train.tracker", tracker, remedy=command):
        train(tracked(tracker), data, f"{tmp_path}/run", world=World())


def test_mlflow_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with refused("train.tracker", "MLFLOW_TRACKING_URI", remedy=True):
        checks.check_tracker("mlflow", "/runs/one")


def test_offline_wandb_needs_a_local_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    with refused("s3://lab/run", remedy="WANDB_DIR"):
        checks.check_tracker("wandb", "s3://lab/run")
    checks.check_tracker("wandb", "/runs/one")
    monkeypatch.setenv("WANDB_DIR", "/tmp/wandb")
    checks.check_tracker("wandb", "s3://lab/run")


def test_mlflow_keeps_one_run_with_each_point_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In MLflow's own file store, through a stop."""
    from mlflow.tracking import MlflowClient

    store = f"file://{tmp_path}/store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "sounds")
    monkeypatch.setattr(follow, "STOP_S", 120.0)
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tracked(), data, str(run), world=World(), report=stop_at(7))
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("sounds")
    [stopped] = client.search_runs([experiment.experiment_id])
    assert stopped.info.status == "KILLED"
    train(tracked(), data, str(run), world=World())
    [done] = client.search_runs([experiment.experiment_id])
    assert (done.info.run_id, done.info.status) == (stopped.info.run_id, "FINISHED")
    assert done.data.params["train.epochs"] == "2"
    assert done.data.params["model.num_frames"] == "64"
    losses = client.get_metric_history(done.info.run_id, "train/loss")
    history = read_history(str(run))
    assert [(point.step, point.value) for point in losses] == [
        (point.step, point.loss) for point in history.steps
    ]
    scores = client.get_metric_history(done.info.run_id, "eval/mAP")
    assert [point.value for point in scores] == [result.mAP for result in history.epochs]
    assert_no_file_holds(SECRET, tmp_path)


def test_wandb_keeps_one_run_offline_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setattr(follow, "STOP_S", 120.0)
    data, run = make_prepared(f"{tmp_path}/data"), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train(tracked("wandb"), data, str(run), world=World(), report=stop_at(7))
    time.sleep(1)  # W&B names the folder of each part by the second in which it began
    train(tracked("wandb"), data, str(run), world=World())
    parts = sorted((run / "wandb").glob("offline-run-*"))
    [tracker_id] = {path.name.rpartition("-")[2] for path in parts}
    assert len(parts) == 2
    expected = [(point.step, point.loss) for point in read_history(str(run)).steps]
    losses: list[tuple[int, float]] = []
    deadline = time.monotonic() + 60
    # W&B's own process writes the last of them after the run has ended.
    while len(losses) < len(expected) and time.monotonic() < deadline:
        losses = [
            point for part in parts for point in wandb_losses(part / f"run-{tracker_id}.wandb")
        ]
    assert losses == expected
    assert_no_file_holds(SECRET, tmp_path)


def wandb_losses(path: Path) -> list[tuple[int, float]]:
    """Steps and losses in a file of an offline run, which `wandb sync` would send."""
    from wandb.proto.wandb_internal_pb2 import Record

    points = []
    for data in leveldb_records(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {"/".join(item.nested_key) or item.key: item for item in record.history.item}
        if "train/loss" in items:
            points.append(
                (record.history.step.num, json.loads(items["train/loss"].value_json)),
            )
    return points


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Records of W&B's file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    whole_or_last, record = (1, 4), b""
    at, head, block = 7, 7, 32 * 1024
    while at + head <= len(data):
        if block - at % block < head:
            at += block - at % block
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + head + size > len(data):
            return  # not written yet
        record += data[at + head : at + head + size]
        at += head + size
        if kind in whole_or_last:
            yield record
            record = b""


def assert_no_file_holds(secret: str, folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
    assert any(folder.iterdir())
