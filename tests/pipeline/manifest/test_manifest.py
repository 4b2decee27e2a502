"""The manifest: it round-trips, may come from other programs, and mistakes are named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.manifest.checks import check
from pipeline.manifest.coverage import CommonClips, Coverage, ListedClass, ListedClips
from pipeline.manifest.files import read_labels, read_manifest, write_manifest
from pipeline.manifest.manifest import SCHEMA, Clip, from_clips
from tests.support.errors import refused

CLIPS = [
    Clip(id="a", uri="/audio/a.wav", labels=("dog",), fold=1),
    Clip(id="ü/2", uri="s3://bucket/ü 2.flac", labels=("rain", "dog"), split="eval"),
    Clip(id="c", uri="/audio/long.ogg", labels=(), start_s=10.0, end_s=20.5),
    Clip(id="d", uri="/audio/long.ogg", labels=("rain",), end_s=1.0),
]
LABELS = ("rain", "cat", "dog")


def write_plain(path: Path, **columns: Any) -> str:
    """A Parquet file as any other program would write one."""
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({"offset_bytes": [512]}, ["offset_bytes", "size_bytes", "'a'", 512]),
        ({"row": [3]}, ["row_group", "row", "'a'", None]),
        ({"row": [3], "row_group": [-1]}, ["row_group", "'a'", -1]),
    ],
)
def test_incomplete_locations_in_containers_are_refused(
    tmp_path: Path, columns: dict[str, Any], values: list[object]
) -> None:
    clip = {"id": ["a"], "uri": ["/x.tar"], "labels": [["dog"]]}
    path = write_plain(tmp_path / "manifest.parquet", **clip, **columns)
    with refused(path, *values):
        read_manifest(path)


def test_manifest_file_keeps_its_coverage(tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.parquet")
    counts = ListedClips(listed=3, found=2, missing=1, unreadable=0, found_s=2.5)
    coverage = Coverage(
        source="/audio",
        splits={"train": counts},
        total=counts,
        classes=(ListedClass(label="dog", official=3, found=2, share=2 / 3),),
        common=CommonClips(listed=2, found=1),
    )
    write_manifest(path, replace(from_clips(CLIPS, LABELS), coverage=coverage))
    assert read_manifest(path).coverage == coverage


def test_manifest_round_trips(tmp_path: Path) -> None:
    path = str(tmp_path / "manifest.parquet")
    manifest = from_clips(CLIPS, LABELS)
    write_manifest(path, manifest)
    read = read_manifest(path)
    assert read.labels == LABELS
    assert read.clips.equals(manifest.clips)
    assert read.clips.to_pylist()[2] == {
        "id": "c",
        "uri": "/audio/long.ogg",
        "start_s": 10.0,
        "end_s": 20.5,
        "labels": [],
        "split": "train",
        "fold": 0,
        "common": False,
        "offset_bytes": None,
        "size_bytes": None,
        "row_group": None,
        "row": None,
    }


def test_the_same_manifest_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        write_manifest(str(tmp_path / f"{name}.parquet"), from_clips(CLIPS, LABELS))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_other_file_extensions_are_refused(tmp_path: Path) -> None:
    with refused("m.csv", remedy=".parquet"):
        write_manifest(str(tmp_path / "m.csv"), from_clips(CLIPS, LABELS))
    assert list(tmp_path.iterdir()) == []


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    path = write_plain(
        tmp_path / "m.parquet",
        note=["extra", "columns", "are left out"],
        labels=[["rain"], ["dog", "rain"], []],
        uri=["/a.wav", "/b.wav", "s3://bucket/c.wav"],
        id=[1, 2, 3],
    )
    manifest = read_manifest(path)
    assert manifest.labels == ("dog", "rain")
    assert manifest.clips.schema.equals(SCHEMA)
    assert manifest.clips["id"].to_pylist() == ["1", "2", "3"]
    assert set(manifest.clips["split"].to_pylist()) == {"train"}
    assert set(manifest.clips["fold"].to_pylist()) == {0}
    assert manifest.clips["start_s"].null_count == 3


def test_compatible_column_types_are_converted(tmp_path: Path) -> None:
    path = write_plain(
        tmp_path / "m.parquet",
        id=pa.array(["a", "b"], pa.large_string()),
        uri=pa.array(["/a", "/a"]).dictionary_encode(),
        labels=pa.array([["x"], ["y"]], pa.large_list(pa.large_string())),
        start_s=pa.array([0, 5], pa.int64()),
        end_s=pa.array([5, None], pa.float32()),
        fold=pa.array([1, 2], pa.int64()),
    )
    clips = read_manifest(path).clips.to_pylist()
    assert [(clip["start_s"], clip["end_s"]) for clip in clips] == [(0.0, 5.0), (5.0, None)]
    assert [clip["labels"] for clip in clips] == [["x"], ["y"]]


def plain(**changes: Any) -> dict[str, Any]:
    columns: dict[str, Any] = {
        "id": ["a", "b", "c"],
        "uri": ["/a", "/b", "s3://bucket/c"],
        "labels": [["x"], ["y"], ["x"]],
    }
    return {**columns, **changes}


NO_CLIP = {
    "id": pa.array([], pa.string()),
    "uri": pa.array([], pa.string()),
    "labels": pa.array([], pa.list_(pa.string())),
}


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (plain(id=["same", "b", "same"]), [1, "id", "same"]),
        (plain(id=["a", "", "c"]), ["an empty id"]),
        (plain(id=["a", None, "c"]), ["column 'id'", 1, "empty"]),
        (plain(uri=["/a", None, None]), ["column 'uri'", 2, "empty"]),
        (plain(labels=[["x"], None, ["y"]]), ["column 'labels'", 1, "empty"]),
        (plain(labels=[["x"], [None, "y"], []]), ["column 'labels'", 1, "empty"]),
        (plain(labels=["x", "y", "x"]), ["column 'labels'", "string", "list"]),
        (plain(fold=["one", "two", "three"]), ["column 'fold'", "string", "int32"]),
        (plain(fold=[2**40, 1, 2]), ["column 'fold'", "int64", "int32"]),
        (plain(fold=[1, -1, 2]), ["fold", "'b'", -1, 1]),
        (plain(uri=["/a", "b.wav", "c.wav"]), ["uri", "'b'", "'b.wav'", 2]),
        (plain(uri=["/a", "/b", "https://host/c"]), ["uri", "'c'", "'https://host/c'", 1]),
        (plain(uri=["/a", "/b", "s3://bucket"]), ["uri", "'c'", "'s3://bucket'", 1]),
        (plain(uri=["/a", "file:///b", "/c"]), ["uri", "'b'", "'file:///b'", 1]),
        (plain(id=["a", "b\n", "c"], uri=["/a", "/b\n", "/c"]), ["uri", r"'b\n'", r"'/b\n'", 1]),
        (plain(uri=["/a", "/b", "/c\0d"]), ["uri", "control", "'c'", r"'/c\x00d'"]),
        (plain(split=["train", "../../evil", "eval"]), ["split '../../evil'"]),
        (plain(start_s=[0.0, -1.0, 0.0]), ["start_s", "'b'", -1.0]),
        (plain(start_s=[0.0, float("nan"), 0.0]), ["start_s", "'b'", "nan"]),
        (plain(end_s=[1.0, float("inf"), 1.0]), ["end_s", "'b'", "inf"]),
        (plain(end_s=[1.0, 0.0, 1.0]), ["end_s", "'b'", 0.0, 1]),
        (plain(start_s=[2.0, 0, 0], end_s=[2.0, 1, 1]), ["end_s", "start_s", "'a'", 2.0, 1]),
        (plain(start_s=[3.0, 0, 0], end_s=[2.0, 1, 1]), ["end_s", "start_s", "'a'", 2.0, 1]),
        (NO_CLIP, ["no clip"]),
        ({"id": ["a"], "uri": ["/a"]}, ["no column 'labels'"]),
        ({"uri": ["/a"], "labels": [["x"]]}, ["no column 'id'"]),
    ],
)
def test_invalid_manifests_are_refused(
    tmp_path: Path, columns: dict[str, Any], values: list[object]
) -> None:
    path = write_plain(tmp_path / "m.parquet", **columns)
    with refused(path, *values):
        read_manifest(path)
    with refused(path, *values):
        read_manifest(path, batch_rows=1)


def test_manifest_is_read_in_any_number_of_batches(tmp_path: Path) -> None:
    path = str(tmp_path / "m.parquet")
    write_manifest(path, from_clips(CLIPS, LABELS))
    whole, in_parts = read_manifest(path), read_manifest(path, batch_rows=1)
    assert in_parts.clips.num_batches == len(CLIPS)
    assert in_parts.clips.equals(whole.clips)
    again = str(tmp_path / "again.parquet")
    write_manifest(again, in_parts)
    assert Path(again).read_bytes() == Path(path).read_bytes()


def test_damage_behind_the_first_clips_is_found(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    table = pa.table(plain())
    pq.write_table(pa.concat_tables([table] * 100), path, row_group_size=100)
    data = bytearray(path.read_bytes())
    second = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    data[second : second + 40] = b"\xff" * 40
    path.write_bytes(data)
    with refused(path, "Parquet", remedy="`manifest`"):
        read_manifest(str(path), batch_rows=10)


def test_a_label_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    manifest = from_clips(CLIPS, ("rain", "cat"))
    path = str(tmp_path / "m.parquet")
    with refused(path, 1, "vocabulary of 2", "'dog'"):
        write_manifest(path, manifest)
    assert not storage.exists(path)
    check(replace(manifest, labels=LABELS), path)


@pytest.mark.parametrize("content", [b"", b"id,uri,labels\n", b"PAR1 cut short PAR1"])
def test_files_other_than_parquet_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.parquet"
    path.write_bytes(content)
    with refused(path, "not", "Parquet", remedy="`manifest`"):
        read_manifest(str(path))


def test_a_missing_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    with refused(tmp_path / "none.parquet", "no manifest", remedy="`manifest`"):
        read_manifest(str(tmp_path / "none.parquet"))


def test_a_fold_too_large_for_the_table_is_refused() -> None:
    with refused("", "fold", 2**40):
        from_clips([Clip(id="a", uri="/a", labels=(), fold=2**40)], ())


def test_labels_file_is_the_vocabulary(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffzebra\n  Wind, rain  \n\napple\n", encoding="utf-8")
    assert read_labels(str(path)) == ("zebra", "Wind, rain", "apple")
    path.write_text("a\nb\na\n", encoding="utf-8")
    with refused(path, "'a'", "twice"):
        read_labels(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with refused(path, "UTF-8"):
        read_labels(str(path))
    with refused(tmp_path / "none.txt", "no such file", remedy=True):
        read_labels(str(tmp_path / "none.txt"))


def test_manifest_round_trips_in_a_bucket(s3: str) -> None:
    write_manifest(f"{s3}/m.parquet", from_clips(CLIPS, LABELS))
    assert read_manifest(f"{s3}/m.parquet").labels == LABELS
    with refused(f"{s3}/none.parquet", "no manifest", remedy="`manifest`"):
        read_manifest(f"{s3}/none.parquet")
    with refused("s3://no-such-bucket", "bucket", remedy="endpoint"):
        read_manifest("s3://no-such-bucket/m.parquet")
