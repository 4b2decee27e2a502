"""Predictions: they round-trip with their source, and damage is named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline import storage
from tests.support.errors import refused
from tests.support.prepared import make_prepared
from trainer.data.clips import select_clips
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import (
    Predictions,
    Source,
    from_scores,
    predictions_path,
    read_metrics,
    read_predictions,
    write_predictions,
)


def make_predictions() -> Predictions:
    """Four clips: of one label, of two, of none, and one with an id that is no file name."""
    scores = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    targets = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1]], dtype=np.float32)
    return Predictions(
        name="train-fold1",
        ids=["a", "b/c", "", "ü \u2028"],
        labels=["dog", "cat, small", "Ümläut"],
        targets=targets,
        scores=scores,
        common=np.zeros(len(targets), dtype=bool),
        source=Source(loss="bce", checkpoint_step=30),
    )


def write(folder: str, predictions: Predictions) -> str:
    metrics = evaluate_scores(predictions.targets, predictions.scores, predictions.labels)
    return write_predictions(folder, predictions, metrics)


def assert_round_trip(folder: str) -> None:
    written = make_predictions()
    assert write(folder, written) == predictions_path(folder, "train-fold1")
    read = read_predictions(folder, "train-fold1")
    assert (read.name, read.ids, read.labels) == (written.name, written.ids, written.labels)
    assert read.source == written.source
    assert np.array_equal(read.scores, written.scores)
    assert np.array_equal(read.targets, written.targets)
    assert np.array_equal(read.common, written.common)


def test_common_subset_is_scored_separately(tmp_path: object) -> None:
    common = np.array([True, False, True, True])
    written = replace(make_predictions(), common=common)
    document = storage.read_json(write(str(tmp_path), written).replace(".parquet", ".json"))
    assert document["num_clips"] == 4
    expected = evaluate_scores(
        written.targets[common], written.scores[common], written.labels
    ).to_json()
    assert document["common"] == json.loads(json.dumps(expected))
    assert document["common"]["mAP"] != document["mAP"]
    none = storage.read_json(write(str(tmp_path), make_predictions()).replace("parquet", "json"))
    assert "common" not in none


def test_predictions_round_trip(tmp_path: object) -> None:
    assert_round_trip(str(tmp_path))


def test_predictions_round_trip_in_a_bucket(s3: str) -> None:
    assert_round_trip(f"{s3}/runs/one")


def test_file_has_the_documented_format(tmp_path: object) -> None:
    """What the report and others read."""
    written = make_predictions()
    path = write(str(tmp_path), written)
    table = storage.read_table(path)
    assert [(field.name, str(field.type)) for field in table.schema] == [
        ("id", "string"),
        ("labels", "list<element: string>"),
        ("scores", "list<element: float>"),
        ("common", "bool"),
        ("predicted", "string"),
    ]
    best = written.scores.argmax(axis=1)
    assert table["predicted"].to_pylist() == [written.labels[number] for number in best]
    assert table["labels"].to_pylist() == [["dog"], ["cat, small", "Ümläut"], [], ["Ümläut"]]
    metadata = json.loads(table.schema.metadata[b"ast_ray"])
    assert metadata == {
        "format_version": 1,
        "name": "train-fold1",
        "labels": written.labels,
        "loss": "bce",
        "checkpoint_step": 30,
    }
    document = storage.read_json(f"{tmp_path}/predictions/train-fold1.json")
    assert document["name"] == "train-fold1"
    assert document["num_clips"] == 4
    assert document["checkpoint_step"] == 30
    assert [entry["label"] for entry in document["per_class"]] == written.labels
    assert {"mAP", "mAUC", "d_prime", "accuracy", "chance_mAP"} <= document.keys()
    assert document["num_classes_left_out"] == 0


def test_table_without_predicted_classes_is_read(tmp_path: object) -> None:
    """One that an older version wrote."""
    path = write(str(tmp_path), make_predictions())
    storage.write_table(path, storage.read_table(path).drop_columns("predicted"))
    assert read_predictions(str(tmp_path), "train-fold1").ids == make_predictions().ids


def test_predictions_hold_the_ids_and_targets_of_a_clip_set(tmp_path: object) -> None:
    clips = select_clips(make_prepared(str(tmp_path), max_labels=2), "train", 2)
    targets = clips.targets(np.arange(len(clips)))
    written = from_scores(clips, targets, targets * 0.5, Source(loss="bce"), clips.name)
    write(str(tmp_path), written)
    read = read_predictions(str(tmp_path), "train-fold2")
    assert read.ids == list(clips.ids)
    assert np.array_equal(read.targets, targets)


def test_missing_predictions_are_refused(tmp_path: object) -> None:
    write(str(tmp_path), make_predictions())
    with refused(str(tmp_path), "'eval'", remedy="`evaluate`"):
        read_predictions(str(tmp_path), "eval")


@pytest.mark.parametrize("damage", ["no scores", "no labels", "no metadata"])
def test_damaged_predictions_are_refused(tmp_path: object, damage: str) -> None:
    path = write(str(tmp_path), make_predictions())
    table = storage.read_table(path)
    metadata = json.loads(table.schema.metadata[b"ast_ray"])
    if damage == "no scores":
        table = table.drop_columns("scores")
    elif damage == "no labels":
        del metadata["labels"]
        table = table.replace_schema_metadata({b"ast_ray": json.dumps(metadata)})
    else:
        table = table.replace_schema_metadata(None)
    storage.write_table(path, table)
    with refused(path, "damaged", remedy="`evaluate`"):
        read_predictions(str(tmp_path), "train-fold1")


def test_scores_in_the_place_of_others_are_refused(tmp_path: object) -> None:
    folder = str(tmp_path)
    other = write(folder, replace(make_predictions(), name="train-fold2"))
    for read, suffix in ((read_predictions, ".parquet"), (read_metrics, ".json")):
        path = predictions_path(folder, "train-fold1").replace(".parquet", suffix)
        storage.write_bytes(path, storage.read_bytes(other.replace(".parquet", suffix)))
        with refused(path, "'train-fold2'", remedy="`evaluate`"):
            read(folder, "train-fold1")


@pytest.mark.parametrize("score", [-0.5, 1.5, float("nan"), 1e30])
def test_scores_outside_their_range_are_refused(tmp_path: object, score: float) -> None:
    written = make_predictions()
    path = write(str(tmp_path), written)
    table = storage.read_table(path)
    scores = written.scores.copy()
    scores[2, 1] = score
    column = table.column_names.index("scores")
    changed = table.set_column(column, table.schema.field(column), [[*map(list, scores)]])
    storage.write_table(path, changed)
    with refused(path, "score", remedy="`evaluate`"):
        read_predictions(str(tmp_path), "train-fold1")


def test_clip_that_is_scored_twice_is_refused(tmp_path: object) -> None:
    path = write(str(tmp_path), make_predictions())
    table = storage.read_table(path)
    storage.write_table(path, table.take([0, 1, 2, 3, 0]))
    with refused(path, "twice", remedy="`evaluate`"):
        read_predictions(str(tmp_path), "train-fold1")


@pytest.mark.parametrize(("name", "value"), [("mAP", 0.25), ("mAUC", None), ("per_class", [])])
def test_means_that_do_not_follow_from_the_classes_are_refused(
    tmp_path: object, name: str, value: object
) -> None:
    path = write(str(tmp_path), make_predictions()).replace(".parquet", ".json")
    storage.write_json(path, storage.read_json(path) | {name: value})
    with refused(path, "mAUC" if name == "mAUC" else "mAP", remedy="`evaluate`"):
        read_metrics(str(tmp_path), "train-fold1")


def test_predictions_are_replaced_when_written_again(tmp_path: object) -> None:
    write(str(tmp_path), make_predictions())
    later = replace(make_predictions(), source=Source(loss="bce", checkpoint_step=60))
    write(str(tmp_path), later)
    assert read_predictions(str(tmp_path), "train-fold1").source.checkpoint_step == 60
