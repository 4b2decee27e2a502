"""Speech Commands' layout: splits by its lists, noise left out, lists that do not fit."""

from collections import Counter
from pathlib import Path

from pipeline import storage
from pipeline.manifest.checks import check
from pipeline.manifest.layouts.read import read_source
from tests.support.errors import assert_notes, refused

FILES = (
    *("bed/0c40e715_nohash_0.wav", "bed/0c40e715_nohash_1.wav", "bed/1.wav"),
    *("zero/0c40e715_nohash_0.wav", "zero/2.wav", "_background_noise_/pink_noise.wav"),
    *("_background_noise_/README.md", "README.md", "LICENSE"),
)
LISTS = {
    "validation_list.txt": "bed/0c40e715_nohash_0.wav\nbed/0c40e715_nohash_1.wav\n",
    "testing_list.txt": "zero/2.wav\r\n",
}


def make(source: str, lists: dict[str, str]) -> str:
    for name in FILES:
        storage.write_bytes(f"{source}/{name}", b"audio")
    for name, text in lists.items():
        storage.write_bytes(f"{source}/{name}", text.encode())
    return source


def check_whole(source: str) -> None:
    manifest = read_source(source, "auto")
    check(manifest, source)
    clips = {clip["id"]: clip for clip in manifest.clips.to_pylist()}
    assert {clip_id: clip["split"] for clip_id, clip in clips.items()} == {
        "bed/0c40e715_nohash_0.wav": "validation",
        "bed/0c40e715_nohash_1.wav": "validation",
        "bed/1.wav": "train",
        "zero/0c40e715_nohash_0.wav": "train",
        "zero/2.wav": "test",
    }
    assert clips["zero/2.wav"]["uri"] == f"{source}/zero/2.wav"
    assert clips["zero/2.wav"]["labels"] == ["zero"]
    assert manifest.labels == ("bed", "zero")
    assert_notes(manifest.notes, [1, "_background_noise_"])


def test_lists_decide_the_splits(tmp_path: Path) -> None:
    check_whole(make(str(tmp_path), LISTS))


def test_lists_decide_the_splits_in_a_bucket(s3: str) -> None:
    check_whole(make(f"{s3}/speech", LISTS))


def test_all_35_words_become_classes(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(35)]
    for word in words:
        for number in range(3):
            storage.write_bytes(f"{tmp_path}/{word}/{number}.wav", b"audio")
    for number, name in enumerate(LISTS):
        text = "".join(f"{word}/{number}.wav\n" for word in words)
        storage.write_bytes(f"{tmp_path}/{name}", text.encode())
    manifest = read_source(str(tmp_path), "speech-commands")
    assert manifest.labels == tuple(sorted(words))
    assert Counter(manifest.clips["split"].to_pylist()) == dict.fromkeys(
        ("train", "validation", "test"), 35
    )
    assert manifest.notes == ()


def test_missing_listed_clips_are_noted(tmp_path: Path) -> None:
    gone = {"testing_list.txt": "zero/2.wav\nzero/9.wav\nbird/1.wav\n"}
    manifest = read_source(make(str(tmp_path), LISTS | gone), "auto")
    assert manifest.clips.num_rows == 5
    assert_notes(manifest.notes[-1:], [2, "listed", "bird/1.wav"])


def test_missing_list_is_noted(tmp_path: Path) -> None:
    lists = {"validation_list.txt": LISTS["validation_list.txt"]}
    manifest = read_source(make(str(tmp_path), lists), "auto")
    assert set(manifest.clips["split"].to_pylist()) == {"train", "validation"}
    assert_notes(manifest.notes[:1], ["testing_list.txt", "'test'"])


def test_missing_overlapping_or_binary_lists_are_refused(tmp_path: Path) -> None:
    source = make(str(tmp_path), {})
    with refused(source, "neither", "validation_list.txt", "testing_list.txt"):
        read_source(source, "speech-commands")
    make(source, {**LISTS, "testing_list.txt": "bed/0c40e715_nohash_0.wav\n"})
    with refused(
        source, "bed/0c40e715_nohash_0.wav", "both", "validation_list.txt", "testing_list.txt"
    ):
        read_source(source, "auto")
    (tmp_path / "testing_list.txt").write_bytes(b"\xff\xfe")
    with refused("testing_list.txt", "UTF-8"):
        read_source(source, "auto")
