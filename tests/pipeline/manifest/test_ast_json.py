"""The AST authors' JSON files: paths, splits, ids, names of the classes."""

import json
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.manifest.checks import check
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.read import read_source
from tests.support.errors import refused

CLASSES = 'index,mid,display_name\n0,/m/r,"Rain, heavy"\n1,/m/b,Bark\n2,/m/c,Cat\n'
TRAIN = [("a/one.flac", "/m/b,/m/r"), ("/data/two.wav", "/m/r")]
TEST = [("s3://bucket/three.wav", "/m/c"), ("../four.wav", "")]


def write(path: str, entries: list[tuple[str, str]]) -> str:
    data = [{"wav": wav, "labels": labels} for wav, labels in entries]
    storage.write_bytes(path, json.dumps({"data": data}).encode())
    return path


def rows(source: str, options: SourceOptions, *columns: str) -> list[tuple[object, ...]]:
    manifest = read_source(source, "auto", options)
    check(manifest, source)
    return list(zip(*(manifest.clips[name].to_pylist() for name in columns), strict=True))


def test_class_labels_name_the_classes_of_a_json(tmp_path: Path) -> None:
    source = write(f"{tmp_path}/meta/train.json", TRAIN)
    (tmp_path / "classes.csv").write_text(CLASSES)
    options = SourceOptions(class_labels=str(tmp_path / "classes.csv"), split="mine")
    assert rows(source, options, "id", "uri", "labels", "split") == [
        ("one", f"{tmp_path}/meta/a/one.flac", ["Bark", "Rain, heavy"], "mine"),
        ("two", "/data/two.wav", ["Rain, heavy"], "mine"),
    ]
    assert read_source(source, "auto", options).labels == ("Rain, heavy", "Bark", "Cat")
    assert read_source(source, "auto").labels == ("/m/b", "/m/r")


def test_the_suffix_may_be_in_any_case(tmp_path: Path) -> None:
    source = write(f"{tmp_path}/TRAIN.JSON", TRAIN)
    assert rows(source, SourceOptions(), "id") == [("one",), ("two",)]
    options = SourceOptions(segments=(f"test={source}",))
    assert rows(str(tmp_path), options, "id", "split") == [("one", "test"), ("two", "test")]


def test_several_json_files_become_splits(tmp_path: Path) -> None:
    train = write(f"{tmp_path}/meta/train.json", TRAIN)
    test = write(f"{tmp_path}/meta/test.json", TEST)
    options = SourceOptions(segments=(f"train={train}", f"eval={test}"))
    expected = [
        ("one", f"{tmp_path}/audio/a/one.flac", "train"),
        ("two", "/data/two.wav", "train"),
        ("three", "s3://bucket/three.wav", "eval"),
        ("four", f"{tmp_path}/four.wav", "eval"),
    ]
    assert rows(f"{tmp_path}/audio", options, "id", "uri", "split") == expected
    more = SourceOptions(segments=(f"eval={test}",))
    beside = rows(train, more, "id", "uri", "split")
    assert beside[0] == ("one", f"{tmp_path}/meta/a/one.flac", "train")
    assert beside[1:] == expected[1:]


def test_paths_become_ids_where_file_names_repeat(tmp_path: Path) -> None:
    entries = [("yes/1.wav", "/m/y"), ("no/1.wav", "/m/n")]
    source = write(f"{tmp_path}/x.json", entries)
    assert rows(source, SourceOptions(), "id") == [("yes/1.wav",), ("no/1.wav",)]


def test_json_is_read_from_a_bucket(s3: str) -> None:
    source = write(f"{s3}/meta/train.json", [("../audio/one.flac", "/m/b")])
    storage.write_bytes(f"{s3}/classes.csv", CLASSES.encode())
    options = SourceOptions(class_labels=f"{s3}/classes.csv")
    assert rows(source, options, "uri", "labels") == [(f"{s3}/audio/one.flac", ["Bark"])]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "not json",
        '{"data": [{"wav": "a.wav"}]}',
        '{"data": [{"wav": "a", "labels": 3}]}',
        '{"data": ["a.wav"]}',
        '{"data": null}',
        '{"data": [{"wav": 1, "labels": ""}]}',
    ],
)
def test_other_json_documents_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with refused("x.json", '{"data": [{"wav": PATH, "labels": "A,B"}]}'):
        read_source(str(tmp_path / "x.json"), "auto")


def test_missing_json_and_unknown_labels_are_refused(tmp_path: Path) -> None:
    with refused("none.json", "no such file"):
        read_source(str(tmp_path / "none.json"), "auto")
    with refused(tmp_path, ".json", "--segments"):
        read_source(str(tmp_path), "ast-json")
    source = write(f"{tmp_path}/x.json", [("a.wav", "/m/b, /m/z")])
    (tmp_path / "classes.csv").write_text(CLASSES)
    options = SourceOptions(class_labels=str(tmp_path / "classes.csv"))
    with refused("", source, "a.wav", "'/m/z'", "--class-labels"):
        read_source(source, "auto", options)
