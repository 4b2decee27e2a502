"""The look at files: a sample that is the same in every run, or all; faults are named."""

from pathlib import Path

import pytest

from pipeline import storage
from pipeline.manifest import file_check
from pipeline.manifest.file_check import SAMPLE_SIZE, check_files, file_warnings, refuse_if_all_fail
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from ray_job import main
from tests.support.audio import encode, tone
from tests.support.errors import assert_error_line, assert_names, assert_notes, refused

SOUND = encode(tone(0.1, 16_000))
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PICTURE = b"ID3\x04\0\0" + bytes([0, 100, 0, 0])
"""The header of a tag of 1.6 MB."""


def manifest_of(*uris: str) -> Manifest:
    return from_clips(
        [Clip(id=str(i), uri=uri, labels=("dog",)) for i, uri in enumerate(uris)], ["dog"]
    )


def write(folder: Path, **contents: bytes) -> list[str]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [f"{folder}/{name}" for name in contents]


def test_faults_are_told_by_content(tmp_path: Path) -> None:
    contents = {
        "wav": SOUND,
        "mp3": b"no frame " * 1_000
        + encode(tone(0.5, 16_000), container="MP3", subtype="MPEG_LAYER_III"),
        "tagged": PICTURE
        + bytes(1_638_400)
        + encode(tone(0.5, 16_000), container="MP3", subtype="MPEG_LAYER_III"),
        "text": b"<html>Not found</html>",
        "pointer": POINTER,
        "empty": b"",
    }
    uris = [
        *write(tmp_path, **contents),
        f"{tmp_path}/gone",
        f"{tmp_path}/wav/below",
        str(tmp_path),
    ]
    check = check_files(manifest_of(*uris), every_file=True)
    assert check.num_files == 9
    assert [(Path(fault.uri).name, fault.reason) for fault in check.faults] == [
        ("text", "no known kind of audio"),
        ("pointer", "a pointer of Git LFS"),
        ("empty", "empty"),
        ("gone", "not found"),
        ("below", "not found"),
        (tmp_path.name, "a folder, not a file"),
    ]
    warnings = file_warnings(check)
    assert len(warnings) == file_check.SHOWN + 1
    assert_notes(warnings[:2], [f"{tmp_path}/text", "audio"], [f"{tmp_path}/pointer", "Git LFS"])
    assert_names(warnings[-1], "6 of 9", "not found (2)", "--max-reject-share")
    assert_names(warnings[-1], "--verbose names all")
    assert "--check" not in warnings[-1]
    refuse_if_all_fail(check, "clips.csv")


def test_members_of_containers_are_read_in_place(tmp_path: Path) -> None:
    (path,) = write(tmp_path, tar=b"x" * 100 + SOUND + b"y" * 10_000)
    clips = [
        Clip(id="a", uri=path, labels=(), offset_bytes=100, size_bytes=len(SOUND)),
        Clip(id="b", uri=path, labels=(), offset_bytes=100 + len(SOUND), size_bytes=20),
        Clip(id="c", uri=f"{tmp_path}/none.parquet", labels=(), row_group=0, row=0),
    ]
    check = check_files(from_clips(clips, ()), every_file=True)
    assert (check.num_files, [fault.reason for fault in check.faults]) == (
        2,
        ["no known kind of audio"],
    )


def test_a_sample_is_the_same_in_every_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = write(tmp_path, **{str(number): SOUND for number in range(100)})
    looked_at: list[str] = []
    read_file = storage.read_file

    def record(uri: str, *place: int) -> bytes:
        looked_at.append(uri)
        return read_file(uri, *place)

    monkeypatch.setattr(storage, "read_file", record)
    for every_file, expected in ((False, SAMPLE_SIZE), (True, 100)):
        runs = []
        for _ in range(2):
            looked_at.clear()
            check = check_files(manifest_of(*uris), every_file=every_file)
            runs.append(sorted(looked_at))
            assert (check.num_files, check.faults) == (expected, ())
        assert runs[0] == runs[1]
        assert len(set(runs[0])) == expected


def test_stretches_of_a_file_are_one_look(tmp_path: Path) -> None:
    (path,) = write(tmp_path, wav=SOUND)
    assert check_files(manifest_of(path, path), every_file=True).num_files == 1


@pytest.mark.parametrize(
    ("content", "values", "remedy"),
    [
        (None, ["none of the 2", "not found (2)"], "--column path=../audio/{path}.wav"),
        (POINTER, ["none of the 2", "Git LFS"], "`git lfs pull`"),
        (b"text", ["none of the 2", "audio"], "--no-check"),
    ],
)
def test_a_source_without_a_usable_file_is_refused(
    tmp_path: Path, content: bytes | None, values: list[object], remedy: str
) -> None:
    uris = (
        [f"{tmp_path}/a", f"{tmp_path}/b"]
        if content is None
        else write(tmp_path, a=content, b=content)
    )
    with refused("clips.csv", *values, f"{tmp_path}/a", remedy=remedy):
        refuse_if_all_fail(check_files(manifest_of(*uris), every_file=False), "clips.csv")


def test_files_of_a_bucket_are_looked_at(s3: str) -> None:
    storage.write_bytes(f"{s3}/a.wav", SOUND)
    storage.write_bytes(f"{s3}/empty.wav", b"")
    check = check_files(
        manifest_of(f"{s3}/a.wav", f"{s3}/empty.wav", f"{s3}/gone.wav"), every_file=False
    )
    assert [fault.reason for fault in check.faults] == ["empty", "not found"]
    with refused("s3://no-such-bucket/a.wav", "bucket", remedy="endpoint"):
        check_files(manifest_of("s3://no-such-bucket/a.wav"), every_file=False)


def test_the_command_names_faults_and_refuses_a_table_without_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, **{f"{i}.wav": SOUND for i in range(50)})
    lines = [f"{i}.wav,{'dog' if i % 2 else 'cat'}" for i in range(53)]
    table = tmp_path / "clips.csv"
    table.write_text("\n".join(["path,labels", *lines]))
    command = ["manifest", str(table), "--folds", "5", "--out", f"{tmp_path}/m.parquet"]
    assert main([*command, "--check"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert_notes(
        warnings,
        *([f"{table}", f"{tmp_path}/{i}.wav: not found"] for i in (50, 51, 52)),
        ["3 of 53", "not found (3)"],
    )
    assert main([*command, "--no-check"]) == 0
    assert capsys.readouterr().err == ""
    table.write_text("path,labels\nx/0.wav,dog\nx/1.wav,cat\n")
    (tmp_path / "m.parquet").unlink()
    assert main(command) == 1
    assert_error_line(capsys.readouterr().err, table, "none of the 2", f"{tmp_path}/x/0.wav")
    assert not (tmp_path / "m.parquet").exists()
