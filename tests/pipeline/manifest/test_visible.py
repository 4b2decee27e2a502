"""Hidden files and what systems leave in folders are no clips, in any layout, and are counted."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.layouts.read import detect, read_source
from pipeline.manifest.layouts.visible import VisibleFiles, is_hidden
from tests.support.errors import assert_notes, refused

HIDDEN = (
    "__MACOSX/dog/._1.wav",
    "__MACOSX/dog/2.wav",
    ".git/objects/x.wav",
    ".DS_Store",
    "dog/.ipynb_checkpoints/1-checkpoint.wav",
    "dog/._1.wav",
    "dog/Thumbs.db",
    "dog/desktop.ini",
    "cat/@eaDir/1.wav/SYNO.wav",
    "$RECYCLE.BIN/1.wav",
)
CLIPS = ("cat/1.wav", "cat/_x.wav", "dog/1.wav", "dog/a.b/MACOSX.wav")
NOTE = [f"{len(HIDDEN)} hidden files", "$RECYCLE.BIN/1.wav"]


def fill(folder: str, *names: str) -> str:
    for name in names:
        storage.write_bytes(f"{folder}/{name}", b"RIFF\0\0\0\0WAVE")
    return folder


@pytest.mark.parametrize("name", HIDDEN)
def test_each_is_hidden(name: str) -> None:
    assert is_hidden(name)


@pytest.mark.parametrize("name", [*CLIPS, "thumbs.db.wav", "a/MACOSX/1.wav", "x..wav"])
def test_others_are_not_hidden(name: str) -> None:
    assert not is_hidden(name)


def test_hidden_files_are_no_clips_of_folders(tmp_path: Path) -> None:
    source = fill(f"{tmp_path}/.cache/sounds", *CLIPS, *HIDDEN)
    manifest = read_source(source)
    assert manifest.clips["id"].to_pylist() == list(CLIPS)
    assert_notes(manifest.notes, NOTE)
    listing, notes = list_audio(source)
    assert sorted(listing["name"].to_pylist()) == list(CLIPS)
    assert_notes(notes, NOTE)


def test_hidden_files_are_no_clips_of_a_bucket(s3: str) -> None:
    manifest = read_source(fill(f"{s3}/sounds", *CLIPS, *HIDDEN))
    assert manifest.clips["id"].to_pylist() == list(CLIPS)
    assert_notes(manifest.notes, NOTE)


def test_hidden_files_are_no_clips_of_speech_commands(tmp_path: Path) -> None:
    source = fill(str(tmp_path), "zero/1.wav", "zero/._1.wav", "__MACOSX/1.wav")
    for name in ("validation_list.txt", "testing_list.txt"):
        storage.write_bytes(f"{source}/{name}", b"")
    manifest = read_source(source)
    assert manifest.labels == ("zero",)
    assert_notes(manifest.notes, ["2 hidden files", "__MACOSX/1.wav"])


def test_hidden_containers_are_not_read(tmp_path: Path) -> None:
    clips = {"id": ["1"], "audio": [b"RIFF\0\0\0\0WAVE"], "label": ["dog"]}
    pq.write_table(pa.table(clips), tmp_path / "clips.parquet")
    fill(str(tmp_path), "._clips.parquet", "__MACOSX/clips.parquet")
    manifest = read_source(str(tmp_path))
    assert manifest.clips["id"].to_pylist() == ["1"]
    assert_notes(manifest.notes, ["2 hidden files", "._clips.parquet"])


def test_hidden_containers_do_not_decide_the_layout(tmp_path: Path) -> None:
    assert detect(fill(str(tmp_path), "._old.parquet", ".old/x.tar", "dog/1.wav")) == "folder"


def test_a_folder_of_hidden_files_alone_is_refused(tmp_path: Path) -> None:
    source = fill(str(tmp_path), ".DS_Store")
    with refused(source, "hidden"):
        read_source(source)
    assert VisibleFiles(source).notes() == []
