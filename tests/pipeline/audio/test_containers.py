"""Clips in Parquet files and WebDataset tars: their location, metadata and damage."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.manifest.checks import check
from pipeline.manifest.layouts import parquet_files, tar_files
from pipeline.manifest.layouts.container_rows import split_of
from pipeline.manifest.layouts.listing import LISTING_SCHEMA
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.parquet_audio import NoAudioColumnError, audio_column, read_audio
from pipeline.manifest.manifest import Manifest
from pipeline.storage import objects
from tests.support.errors import assert_names, assert_notes, refused

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CLASSES = 'index,mid,display_name\n1,/m/b,Bark\n0,/m/r,"Rain, heavy"\n2,/m/c,Cat\n'


def flac(seed: int, num_samples: int = 800) -> bytes:
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples)
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, 16_000, format="FLAC")
    return buffer.getvalue()


def parquet_bytes(
    columns: Mapping[str, Any], *, row_group_size: int = 3, features: object = None
) -> bytes:
    table = pa.table(dict(columns))
    if features is not None:
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def audio_array(contents: list[bytes | None], paths: list[str | None] | None = None) -> pa.Array:
    names = paths or [f"{i}.flac" for i in range(len(contents))]
    rows = [{"bytes": b, "path": p} for b, p in zip(contents, names, strict=True)]
    return pa.array(rows, AUDIO)


def write_parquet(path: Path, columns: Mapping[str, Any], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(columns, **options))
    return str(path)


def tar_bytes(members: list[tuple[str, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]], **options: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(members, **options))
    return str(path)


def read_place(clip: Mapping[str, Any]) -> bytes | None:
    """A clip's audio, read at the location in the manifest or listing."""
    if clip["row"] is None:
        return storage.read_range(clip["uri"], clip["offset_bytes"], clip["size_bytes"])
    with storage.open_binary(clip["uri"]) as file:
        return read_audio(file, clip["row_group"], [clip["row"]])[0]


def by_id(manifest: Manifest) -> dict[str, dict[str, Any]]:
    check(manifest, "manifest")
    return {clip["id"]: clip for clip in manifest.clips.to_pylist()}


# --- listing, then reading, gives what went in ---------------------------------------------------

# Letters, dots in folders, and names past the 100 bytes of a plain tar header.
keys = st.text("abcäöz-_", min_size=1, max_size=8).map(lambda text: text * 20) | st.text(
    "abcäöz-_", min_size=1, max_size=20
)


@given(
    contents=st.lists(st.none() | st.binary(max_size=2000), min_size=1, max_size=20),
    row_group_size=st.integers(1, 7),
    plain=st.booleans(),
)
def test_parquet_returns_the_written_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    contents: list[bytes | None],
    row_group_size: int,
    plain: bool,
) -> None:
    audio = pa.array(contents, pa.binary()) if plain else audio_array(contents)
    path = tmp_path_factory.mktemp("p") / "train.parquet"
    write_parquet(path, {"wav": audio}, row_group_size=row_group_size)
    listing, _ = list_audio(str(path))
    assert listing.schema == LISTING_SCHEMA
    assert [read_place(clip) for clip in listing.to_pylist()] == contents
    with path.open("rb") as file:
        rows = list(reversed(range(min(row_group_size, len(contents)))))
        audio = read_audio(file, 0, rows)
        assert audio == [contents[row] for row in rows]


@given(
    clips=st.dictionaries(keys, st.binary(max_size=2000), min_size=1, max_size=10),
    kind=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_tar_returns_the_written_bytes(
    tmp_path_factory: pytest.TempPathFactory, clips: dict[str, bytes], kind: int
) -> None:
    members = []
    for key, content in clips.items():
        members += [(f"v1.0/{key}.flac", content), (f"v1.0/{key}.json", b'{"labels": ["x"]}')]
    path = write_tar(tmp_path_factory.mktemp("t") / "a.tar", members, kind=kind)
    listing, _ = list_audio(path)
    assert listing.schema == LISTING_SCHEMA
    read = {clip["name"]: read_place(clip) for clip in listing.to_pylist()}
    assert read == {f"v1.0/{key}": content for key, content in clips.items()}
    assert listing["labels"].to_pylist() == [["x"]] * len(clips)


def test_files_and_row_groups_keep_their_order(tmp_path: Path) -> None:
    audio: list[bytes | None] = [flac(i) for i in range(14)]
    for part in range(2):
        columns = {"audio": audio_array(audio[7 * part :][:7]), "video_id": list("abcdefg")}
        write_parquet(tmp_path / f"{part}.parquet", columns)
    listing, _ = list_audio(str(tmp_path))
    assert listing["name"].to_pylist() == list("abcdefg") * 2
    assert listing["row_group"].to_pylist() == [0, 0, 0, 1, 1, 1, 2] * 2
    assert listing["row"].to_pylist() == [0, 1, 2, 0, 1, 2, 0] * 2
    assert [read_place(clip) for clip in listing.to_pylist()] == audio


# --- Parquet ------------------------------------------------------------------------------------


def test_audioset_is_read_as_stored_on_the_hub(tmp_path: Path) -> None:
    for folder, clip_id in (("bal_train", "abc"), ("unbal_train", "-_x"), ("eval", "xyz")):
        columns = {
            "video_id": [clip_id],
            "audio": audio_array([flac(1)], [f"audio/{folder}/{clip_id}.flac"]),
            "labels": [["/m/b", "/m/r"]],
            "human_labels": [["Bark", "Rain, heavy"]],
        }
        write_parquet(tmp_path / "data" / folder / "00.parquet", columns)
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "classes.csv").write_text(CLASSES)
    plain = parquet_files.read(str(tmp_path), SourceOptions())
    assert plain.labels == ("Bark", "Rain, heavy")
    classes = str(tmp_path / "classes.csv")
    manifest = parquet_files.read(str(tmp_path), SourceOptions(class_labels=classes))
    assert manifest.labels == ("Rain, heavy", "Bark", "Cat")
    clips = by_id(manifest)
    assert {clip_id: clip["split"] for clip_id, clip in clips.items()} == {
        "abc": "balanced",
        "-_x": "unbalanced",
        "xyz": "eval",
    }
    assert clips["abc"]["labels"] == ["Bark", "Rain, heavy"]
    assert read_place(clips["abc"]) == flac(1)
    assert manifest.notes == ()


def test_parquet_columns_fill_every_field(tmp_path: Path) -> None:
    columns = {
        "id": [7, 8, 9],
        "audio": audio_array([b"1", b"2", b"3"]),
        "label": [1, 0, -1],
        "split": ["test", None, "dev_set"],
        "fold": [1, 2, None],
        "start_s": [0.5, None, None],
        "end_s": [1.5, None, None],
    }
    features = {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}
    path = write_parquet(tmp_path / "validation-00000-of-00001.parquet", columns, features=features)
    manifest = parquet_files.read(path, SourceOptions())
    clips = by_id(manifest)
    assert [clip["labels"] for clip in clips.values()] == [["cat"], ["dog"], []]
    assert [clip["split"] for clip in clips.values()] == ["test", "validation", "dev_set"]
    assert [clip["fold"] for clip in clips.values()] == [1, 2, 0]
    assert (clips["7"]["start_s"], clips["7"]["end_s"], clips["8"]["end_s"]) == (0.5, 1.5, None)
    assert_notes(manifest.notes, ["1 clip", "label"])


@pytest.mark.parametrize(
    ("values", "feature", "expected"),
    [
        (["dog", "a; b", None], None, [["dog"], ["a", "b"], []]),
        ([[0, 1], [], None], {"feature": {"names": ["x", "y"]}}, [["x", "y"], [], []]),
        ([[0], [1], [-1]], [{"names": ["x", "y"]}], [["x"], ["y"], []]),
        ([3, 4, None], {"dtype": "int64"}, [["3"], ["4"], []]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), None, [["b"], ["a"], ["b"]]),
    ],
)
def test_labels_are_read_from_many_types(
    tmp_path: Path, values: Any, feature: object, expected: list[list[str]]
) -> None:
    columns = {"audio": audio_array([b"1", b"2", b"3"]), "labels": values}
    features = {"labels": feature} if feature else None
    path = write_parquet(tmp_path / "x.parquet", columns, features=features)
    manifest = parquet_files.read(path, SourceOptions(split="mine"))
    assert manifest.clips["labels"].to_pylist() == expected
    assert set(manifest.clips["split"].to_pylist()) == {"mine"}


def test_parquet_columns_can_be_renamed(tmp_path: Path) -> None:
    columns = {"audio": audio_array([b"1"]), "category": ["dog"], "label": ["no"], "part": [3]}
    path = write_parquet(tmp_path / "x.parquet", columns)
    options = SourceOptions(columns={"labels": "category", "fold": "part"})
    manifest = parquet_files.read(path, options)
    assert manifest.clips["labels"].to_pylist() == [["dog"]]
    assert manifest.clips["fold"].to_pylist() == [3]
    with refused("--column labels=none", path):
        parquet_files.read(path, SourceOptions(columns={"labels": "none"}))
    with refused("--column label=...", "labels"):
        parquet_files.read(path, SourceOptions(columns={"label": "category"}))


def test_parquet_without_any_label_is_refused(tmp_path: Path) -> None:
    columns = {"audio": audio_array([b"1", b"2"]), "labels": [[], [""]]}
    path = write_parquet(tmp_path / "x.parquet", columns)
    with refused(path, "none of 2", remedy="--column labels=NAME"):
        parquet_files.read(path, SourceOptions())


def test_rows_without_a_name_are_numbered(tmp_path: Path) -> None:
    columns = {"audio": pa.array([{"bytes": b"1", "path": None}, None], AUDIO), "label": ["a", "b"]}
    path = write_parquet(tmp_path / "x.parquet", columns, row_group_size=1)
    clips = by_id(parquet_files.read(path, SourceOptions()))
    assert list(clips) == ["0-0", "1-0"]
    assert [read_place(clip) for clip in clips.values()] == [b"1", None]


def test_repeated_names_are_prefixed_with_their_file(tmp_path: Path) -> None:
    for name in ("train", "test"):
        columns = {"audio": audio_array([b"1", b"2"]), "label": ["a", "b"]}
        write_parquet(tmp_path / "in" / f"{name}.parquet", columns)
    manifest = parquet_files.read(str(tmp_path / "in"), SourceOptions())
    assert sorted(by_id(manifest)) == [
        f"{name}.parquet/{row}.flac" for name in ("test", "train") for row in (0, 1)
    ]
    assert_notes(manifest.notes, ["ids", "name"])


def test_listing_reads_no_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [np.random.default_rng(i).bytes(200_000) for i in range(6)]
    columns = {"audio": audio_array(list(big)), "label": ["a"] * 6}
    path = write_parquet(tmp_path / "x.parquet", columns)
    members = [(f"{i}.flac", content) for i, content in enumerate(big)]
    tar = write_tar(tmp_path / "x.tar", members)
    counted = count_bytes(monkeypatch)
    assert list_audio(path)[0].num_rows == list_audio(tar)[0].num_rows == 6
    assert 0 < sum(counted) < 300_000


def count_bytes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all later reads from files opened by `storage.open_binary`."""
    counted: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            counted.append(super().readinto(buffer) or 0)
            return counted[-1]

        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size) or b""
            counted.append(len(data))
            return data

    monkeypatch.setattr(storage, "open_binary", lambda path: Counting(path))
    return counted


def test_audio_column_is_chosen_by_type_and_name() -> None:
    def find(*fields: tuple[str, pa.DataType]) -> str:
        return audio_column(pa.schema(fields))

    assert find(("wav", AUDIO), ("id", pa.string())) == "wav.bytes"
    assert find(("image", pa.binary()), ("audio", pa.large_binary())) == "audio"
    with refused("", 0, "id", type=NoAudioColumnError):
        find(("id", pa.string()))
    with refused("", 2, "a, b", type=NoAudioColumnError):
        find(("a", pa.binary()), ("b", AUDIO))


def test_missing_rows_and_damaged_pages_are_errors() -> None:
    data = parquet_bytes({"audio": audio_array([b"1", b"2"])})
    with pytest.raises(EOFError, match=r"\b0 .*\b2 rows"):
        read_audio(io.BytesIO(data), 0, [1, 2])
    with pytest.raises(pa.ArrowInvalid):
        read_audio(io.BytesIO(data), 1, [0])
    damaged = bytearray(data)
    start = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(0).data_page_offset
    damaged[start : start + 8] = b"\xff" * 8
    with pytest.raises(pa.ArrowInvalid):
        read_audio(io.BytesIO(damaged), 0, [0])


def test_unusable_parquet_files_are_noted(tmp_path: Path) -> None:
    whole = {"audio": audio_array([flac(i) for i in range(3)]), "label": ["a"] * 3}
    path = write_parquet(tmp_path / "a.parquet", whole)
    (tmp_path / "b.parquet").write_bytes(Path(path).read_bytes()[:-100])
    (tmp_path / "c.parquet").write_bytes(b"")
    write_parquet(tmp_path / "d.parquet", {"text": ["x"]})
    columns = {"audio": audio_array([b"x"]), "label": [5]}
    write_parquet(tmp_path / "e.parquet", columns, features={"label": {"names": ["a"]}})
    manifest = parquet_files.read(str(tmp_path), SourceOptions())
    assert manifest.clips["uri"].to_pylist() == [path] * 3
    assert len(manifest.notes) == 4
    for note, name in zip(manifest.notes, "bcde", strict=True):
        assert_names(note, "left out", "Parquet")
        assert note.endswith(f"(1 in 1 file, such as {tmp_path}/{name}.parquet)")
    assert_notes(manifest.notes[2:], ["0 columns"], ["label is 5", "1 class"])


def test_damaged_pages_alone_are_refused(tmp_path: Path) -> None:
    columns = {"audio": audio_array([b"x"] * 50), "label": ["a"] * 50}
    data = bytearray(parquet_bytes(columns, row_group_size=50))
    start = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0).column(2).data_page_offset
    data[start : start + 8] = b"\xff" * 8
    (tmp_path / "x.parquet").write_bytes(data)
    with refused(tmp_path / "x.parquet", "no clip in 1 .parquet", remedy=True):
        parquet_files.read(str(tmp_path / "x.parquet"), SourceOptions())


def test_only_the_first_faults_are_listed(tmp_path: Path) -> None:
    for number in range(2, 7):
        columns = {f"audio_{column}": audio_array([b"x"]) for column in range(number)}
        write_parquet(tmp_path / f"{number}.parquet", columns)
    with refused(tmp_path, "no clip in 5 .parquet", "2 more") as caught:
        parquet_files.read(str(tmp_path), SourceOptions())
    assert str(caught.value).count(str(tmp_path)) == 1 + 3


@pytest.mark.parametrize("layout", [parquet_files, tar_files])
def test_missing_containers_are_refused(tmp_path: Path, layout: Any) -> None:
    with refused(tmp_path, layout.SUFFIX):
        layout.read(str(tmp_path), SourceOptions())
    with refused(tmp_path / f"none{layout.SUFFIX}", "not found"):
        layout.read(str(tmp_path / f"none{layout.SUFFIX}"), SourceOptions())


def test_labels_outside_the_class_list_are_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", {"audio": audio_array([b"x"]), "label": ["/m/z"]})
    (tmp_path / "classes.csv").write_text(CLASSES)
    options = SourceOptions(class_labels=str(tmp_path / "classes.csv"))
    with refused(tmp_path / "classes.csv", 1, "'/m/z'"):
        parquet_files.read(path, options)


# --- tars ---------------------------------------------------------------------------------------


def test_tars_written_by_webdataset_are_read(tmp_path: Path) -> None:
    path = str(tmp_path / "train-00000.tar")
    facts = [
        {"labels": ["dog", "cat"], "split": "eval", "fold": 2, "start_s": 0.5, "end_s": "1.5"},
        {"id": "own", "label": "rain"},
        {"tags": ["a", "b"], "text": "a caption"},
        {},
    ]
    with webdataset.TarWriter(path) as writer:
        for number, fact in enumerate(facts):
            writer.write({"__key__": f"set.1/{number:03d}", "flac": flac(number), "json": fact})
    manifest = tar_files.read(path, SourceOptions())
    clips = by_id(manifest)
    assert manifest.labels == ("a", "b", "cat", "dog", "rain")
    assert list(clips) == ["set.1/000", "own", "set.1/002", "set.1/003"]
    assert [read_place(clip) for clip in clips.values()] == [flac(i) for i in range(4)]
    assert [clip["split"] for clip in clips.values()] == ["eval", "train", "train", "train"]
    assert [clip["labels"] for clip in clips.values()][1:] == [["rain"], ["a", "b"], []]
    first = clips["set.1/000"]
    assert (first["fold"], first["start_s"], first["end_s"]) == (2, 0.5, 1.5)
    assert_notes(manifest.notes, ["1 clip", "label"])


def test_other_tar_members_are_skipped_and_noted(tmp_path: Path) -> None:
    members = [
        ("./a.flac", b"1"),
        ("./a.json", b'{"label": "x"}'),
        ("b.left.wav", b"2"),
        ("b.right.wav", b"3"),
        ("b.json", b"[no json"),
        ("c.FLAC", b"4"),
        ("c.json", b'{"label": "x", "fold": "one"}'),
        ("d.m4a", b"5"),
        ("notes.txt", b"6"),
        (".hidden.wav", b"7"),
        ("./__MACOSX/f.wav", b"7"),
        ("._a.flac", b"7"),
        ("no suffix", b"8"),
    ]
    path = write_tar(tmp_path / "test_01.tar", members)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("l.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "a.flac"
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(link)
        tar.addfile(folder)
    manifest = tar_files.read(path, SourceOptions())
    clips = by_id(manifest)
    assert {clip_id: read_place(clip) for clip_id, clip in clips.items()} == {
        "a": b"1",
        "b": b"2",
        "d": b"5",
    }
    assert {clip["split"] for clip in clips.values()} == {"test"}
    where = f"(1 in 1 file, such as {path})"
    assert_notes(
        manifest.notes,
        ["left out", "key", where],
        ["JSON", where],
        ["left out", "neither", "2 in 1 file"],
        ["left out", "hidden", "3 in 1 file"],
        ["left out", "links", where],
        ["left out", "fold", "start_s", "end_s", where],
        ["2 clips", "label"],
    )


@pytest.mark.parametrize("key", ["fold", "start_s", "end_s"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "1e30", "[1]"])
def test_numbers_of_a_tar_that_are_none_cost_only_their_clips(
    key: str, value: str, tmp_path: Path
) -> None:
    odd = f'{{"label": "x", "{key}": {value}}}'.encode()
    members = [("a.wav", b"1"), ("a.json", odd), ("b.wav", b"2"), ("b.json", b'{"label": "x"}')]
    manifest = tar_files.read(write_tar(tmp_path / "a.tar", members), SourceOptions())
    check(manifest, "m")
    assert list(by_id(manifest)) == ["b"]
    assert_notes(manifest.notes, ["left out", key, "1 in 1 file"])


def test_tar_members_of_any_name_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar"
    names = ["t\tab", "l\nine", "/absolute", "a//b", "sp ace ", "\u2028"]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in names:
            member = tarfile.TarInfo(f"{name}.wav")
            member.size = 5
            tar.addfile(member, io.BytesIO(b"audio"))
    manifest = tar_files.read(str(path), SourceOptions())
    check(manifest, "m")
    assert manifest.clips["id"].to_pylist() == names


def test_truncated_tar_keeps_its_whole_members(tmp_path: Path) -> None:
    audio = [flac(i, 400) for i in range(3)]
    whole = tar_bytes([(f"{i}.flac", content) for i, content in enumerate(audio)])
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + member.size for member in tar]
    path = tmp_path / "x.tar"
    last_block = ends[-1] + -ends[-1] % tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
    for size_bytes in {*range(0, last_block, 97), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(whole[:size_bytes])
        listing, notes = list_audio(str(path))
        num_whole = sum(end <= size_bytes for end in ends)
        assert listing["name"].to_pylist() == ["0", "1", "2"][:num_whole], size_bytes
        assert [read_place(clip) for clip in listing.to_pylist()] == audio[:num_whole]
        assert len(notes) == 1, size_bytes
        assert notes[0].endswith(f"(1 in 1 file, such as {path})")
    path.write_bytes(whole[:last_block])
    assert_notes(tar_files.read(str(path), SourceOptions()).notes, ["3 clips", "label"])


def test_damaged_tar_keeps_the_members_before_the_damage(tmp_path: Path) -> None:
    path = Path(write_tar(tmp_path / "x.tar", [(f"{i}.wav", b"x" * 600) for i in range(3)]))
    data = bytearray(path.read_bytes())
    data[1536:2048] = b"\xff" * 512
    path.write_bytes(data)
    (tmp_path / "y.tar").write_bytes(b"no tar at all" * 100)
    manifest = tar_files.read(str(tmp_path), SourceOptions())
    assert manifest.clips["id"].to_pylist() == ["0"]
    assert {note.rpartition(" ")[2] for note in manifest.notes[:2]} == {
        f"{path})",
        f"{tmp_path}/y.tar)",
    }
    assert all("cut off or damaged" in note for note in manifest.notes[:2])


# --- splits by names, and a bucket ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train-00000-of-00010.parquet", "train"),
        ("data/bal_train/00.parquet", "balanced"),
        ("data/unbal_train/train.parquet", "train"),
        ("Eval/x.tar", "eval"),
        ("test_07.tar", "test"),
        ("val0001.tar", "validation"),
        ("trainer/contest/latest.tar", None),
        ("evaluate.tar", None),
    ],
)
def test_file_names_tell_the_split(name: str, expected: str | None) -> None:
    assert split_of(name) == expected


def test_containers_are_read_from_a_bucket(s3: str) -> None:
    audio = [flac(i) for i in range(8)]
    columns = {"audio": audio_array(list(audio)), "label": ["a"] * 8}
    storage.write_bytes(f"{s3}/hub/data/test-00000-of-00001.parquet", parquet_bytes(columns))
    members = [(f"{i}.flac", content) for i, content in enumerate(audio)]
    storage.write_bytes(f"{s3}/tars/eval/0.tar", tar_bytes(members))
    for layout, source, split in ((parquet_files, "hub", "test"), (tar_files, "tars", "eval")):
        clips = by_id(layout.read(f"{s3}/{source}", SourceOptions()))
        assert [read_place(clip) for clip in clips.values()] == audio
        assert {clip["split"] for clip in clips.values()} == {split}


@pytest.mark.parametrize(
    "document",
    [b'{"labels": ["dog\\ud800"]}', b'{"labels": ["\xff"]}', b"[" * 10_000, b'{"\\udfff": 1}'],
)
def test_text_that_is_not_unicode_costs_only_its_labels(document: bytes, tmp_path: Path) -> None:
    good = json.dumps({"labels": ["dog"]}).encode()
    members = [("0.flac", b"x"), ("0.json", document), ("1.flac", b"x"), ("1.json", good)]
    (tmp_path / "x.tar").write_bytes(tar_bytes(members))
    rows, notes = list_audio(str(tmp_path / "x.tar"))
    assert rows["labels"].to_pylist() == [None, ["dog"]]
    assert len(notes) == 1
    assert_names(notes[0], "JSON")


def test_listing_a_bucket_fetches_no_audio(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    big = [np.random.default_rng(i).bytes(200_000) for i in range(6)]
    columns = {"audio": audio_array(list(big)), "label": ["a"] * 6}
    storage.write_bytes(f"{s3}/x.parquet", parquet_bytes(columns))
    members = [(f"{i}.flac", content) for i, content in enumerate(big)]
    storage.write_bytes(f"{s3}/x.tar", tar_bytes(members))
    fetched: list[int] = []
    read_range = objects.read_object_range

    def counting(path: str, offset_bytes: int, size_bytes: int) -> bytes:
        fetched.append(size_bytes)
        return read_range(path, offset_bytes, size_bytes)

    monkeypatch.setattr(objects, "read_object_range", counting)
    for name in ("x.parquet", "x.tar"):
        assert list_audio(f"{s3}/{name}")[0].num_rows == 6
        assert 0 < sum(fetched) < 300_000
        fetched.clear()
