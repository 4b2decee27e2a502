"""Groups of clips: where they come from in each layout, and the warning if folds part them."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.files import read_manifest
from pipeline.manifest.folds import assign_folds
from pipeline.manifest.groups import is_likely_group
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.read import read_source, read_sources
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.manifest.warnings.groups import group_warnings
from ray_job import main
from tests.pipeline.manifest.test_layouts import write_files, write_table
from tests.support.audio import encode, tone
from tests.support.errors import assert_error_line, assert_notes, refused

SPEAKERS = ("anna", "bob", "cleo")
COLUMNS = "path,labels,speaker,take\n"
LINES = [f"{s}{i}.wav,{'ab'[i % 2]},{s},{i}\n" for s in SPEAKERS for i in range(8)]


def groups_of(manifest: Manifest) -> list[str]:
    assert manifest.group is not None
    return list(manifest.group.values.to_pylist())


def folds_of_groups(manifest: Manifest) -> set[tuple[str, int]]:
    return set(zip(groups_of(manifest), manifest.clips["fold"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    "name",
    [
        "speaker",
        "Speaker_ID",
        "speakerId",
        "client_id",
        "src_file",
        "video_id",
        "session",
        "subjects",
    ],
)
def test_columns_of_groups_are_known_by_their_names(name: str) -> None:
    assert is_likely_group(name)


@pytest.mark.parametrize("name", ["label", "take", "duration", "resource", "videography", "age"])
def test_other_columns_are_not(name: str) -> None:
    assert not is_likely_group(name)


def test_groups_are_a_column_of_a_table(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(LINES))
    manifest = read_source(source, "auto", SourceOptions(group="speaker"))
    assert groups_of(manifest) == [speaker for speaker in SPEAKERS for _ in range(8)]
    folded = assign_folds(manifest, 3)
    assert len(folds_of_groups(folded)) == 3
    assert group_warnings(folded) == []
    both = read_source(source, "auto", SourceOptions(group="{table}-{speaker}"))
    assert groups_of(both)[0] == "clips-anna"
    with refused("clips.csv", "no column speker", "speaker"):
        read_source(source, "auto", SourceOptions(group="speker"))


def test_a_column_of_the_classes_is_no_group(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(LINES))
    manifest = read_source(source, "auto", SourceOptions(group="labels"))
    with refused("--group labels", "class", remedy="column"):
        assign_folds(manifest, 2)


def test_groups_may_be_a_numbered_column(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", "".join(LINES))
    manifest = read_source(source, "auto", SourceOptions(group="3"))
    assert set(groups_of(manifest)) == set(SPEAKERS)


def test_a_forgotten_group_is_warned_of(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(LINES))
    manifest = read_source(source)
    assert group_warnings(manifest) == []
    assert_notes(
        group_warnings(assign_folds(manifest, 3)),
        ["3 of 3", "'speaker'", "folds", "--folds 5 --group speaker"],
    )


def test_a_group_in_several_splits_is_warned_of(tmp_path: Path) -> None:
    dev = write_table(tmp_path / "dev.csv", COLUMNS + "".join(LINES))
    lines = [line.replace(".wav", ".flac") for line in LINES[:12]]
    test = write_table(tmp_path / "test.csv", COLUMNS + "".join(lines))
    manifest = read_sources([f"train={dev}", f"test={test}"], "auto", SourceOptions())
    assert_notes(group_warnings(manifest), ["2 of 3", "'speaker'", "splits", "one split"])


def test_tables_may_differ_in_likely_columns(tmp_path: Path) -> None:
    bare = write_table(tmp_path / "a.csv", "path,labels\nx.wav,a\n")
    more = write_table(tmp_path / "b.csv", COLUMNS + "".join(LINES))
    for tables in ([bare, more], [more, bare]):
        sources = [f"train={tables[0]}", f"test={tables[1]}"]
        manifest = read_sources(sources, "auto", SourceOptions())
        values = {group.name: group.values.to_pylist() for group in manifest.likely_groups}
        assert len(values["speaker"]) == 25
        named = dict(zip(manifest.clips["id"].to_pylist(), values["speaker"], strict=True))
        assert (named["x.wav"], named["bob3.wav"]) == (None, "bob")


def test_stretches_of_a_file_in_several_folds_are_warned_of(tmp_path: Path) -> None:
    rows = [f"{n}.wav,{'ab'[k % 2]},{n}-{k},{k},{k + 1}\n" for n in range(4) for k in range(6)]
    text = "file,labels,id,start_s,end_s\n" + "".join(rows)
    source = write_table(tmp_path / "clips.csv", text)
    manifest = read_source(source, "auto", SourceOptions(columns={"path": "file"}))
    assert_notes(
        group_warnings(assign_folds(manifest, 2)), ["4 of 4", "'file'", "--folds 5 --group file"]
    )


def test_videos_of_names_are_warned_of() -> None:
    ids = [
        f"a/Y{video}_{start}000.wav"
        for video in ("--PJHxphWEs", "_0aE2O5G5_Y")
        for start in (0, 30, 60)
    ]
    clips = [Clip(id=clip_id, uri=f"/{clip_id}", labels=("dog",)) for clip_id in ids]
    manifest = assign_folds(from_clips(clips, ["dog"]), 2)
    assert_notes(group_warnings(manifest), ["2 of 2", "'video'", "table", "--group video"])


def test_a_few_names_like_those_of_videos_are_not_warned_of() -> None:
    ids = [f"--PJHxphWEs_{start}.wav" for start in range(6)] + [f"{i}.wav" for i in range(6)]
    clips = [Clip(id=clip_id, uri=f"/{clip_id}", labels=("dog",)) for clip_id in ids]
    clips += [replace(clip, id=f"Y_0aE2O5G5_Y_{i}", uri="/x") for i, clip in enumerate(clips[:6])]
    assert group_warnings(assign_folds(from_clips(clips, ["dog"]), 2)) == []


def test_fewer_groups_than_folds_are_not_warned_of(tmp_path: Path) -> None:
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(LINES))
    assert group_warnings(assign_folds(read_source(source), 4)) == []


def test_clips_that_are_each_a_group_are_not_warned_of(tmp_path: Path) -> None:
    lines = [f"{i}.wav,{'ab'[i % 2]},recording {i},x\n" for i in range(12)]
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(lines))
    assert group_warnings(assign_folds(read_source(source), 3)) == []


def test_esc50_has_the_recordings_of_its_clips(tmp_path: Path) -> None:
    rows = [f"{i}.wav,1,{i % 2},{'ab'[i % 2]},,{i // 4},x\n" for i in range(24)]
    text = "filename,fold,target,category,esc10,src_file,take\n" + "".join(rows)
    write_table(tmp_path / "meta" / "esc50.csv", text)
    assert_notes(
        group_warnings(assign_folds(read_source(str(tmp_path)), 2)), ["6 of 6", "'src_file'"]
    )
    folded = assign_folds(read_source(str(tmp_path), options=SourceOptions(group="src_file")), 2)
    assert len(folds_of_groups(folded)) == 6
    with refused("esc50.csv", "no column speaker"):
        read_source(str(tmp_path), options=SourceOptions(group="speaker"))


def test_audioset_has_the_videos_of_its_segments(tmp_path: Path) -> None:
    videos = ("--PJHxphWEs", "_0aE2O5G5_Y", "-_aaaaaaa_9")
    segments = "".join(
        f"{video}, {10 * i}, {10 * i + 10}, /m/a\n" for video in videos for i in range(4)
    )
    table = write_table(tmp_path / "segments.csv", segments)
    write_table(tmp_path / "class_labels_indices.csv", "index,mid,display_name\n0,/m/a,Dog\n")
    names = [f"{video}_{10 * i}.wav" for video in videos for i in range(4)]
    source = write_files(tmp_path / "audio", *names)
    options = SourceOptions(segments=(f"train={table}",))
    manifest = assign_folds(read_source(source, options=options), 2)
    assert_notes(group_warnings(manifest), ["3 of 3", "'video'", "--group video"])
    options = SourceOptions(segments=(f"train={table}",), group="video")
    folded = assign_folds(read_source(source, options=options), 2)
    assert len(folds_of_groups(folded)) == 3
    with refused("--group speaker", "'video'"):
        read_source(source, options=SourceOptions(segments=(f"train={table}",), group="speaker"))


def containers(folder: Path) -> dict[str, str]:
    """The same clips in a Parquet file and in a tar."""
    clips = [(f"{s}{i}", "ab"[i % 2], s) for s in SPEAKERS for i in range(8)]
    folder.mkdir()
    ids, labels, speakers = (list(column) for column in zip(*clips, strict=True))
    source = pa.array([{"url": "x"}] * len(ids))  # no text, so no group
    columns = {"id": ids, "label": labels, "source": source, "speaker_id": speakers}
    pq.write_table(pa.table({**columns, "audio": [b"x"] * len(ids)}), folder / "clips.parquet")
    with tarfile.open(folder / "clips.tar", "w") as tar:
        for clip_id, label, speaker in clips:
            metadata = {"label": label, "source": {"url": "x"}, "speaker_id": speaker}
            for name, content in (("wav", b"x"), ("json", json.dumps(metadata).encode())):
                member = tarfile.TarInfo(f"{clip_id}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {kind: f"{folder}/clips.{kind}" for kind in ("parquet", "tar")}


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_groups_are_a_field_in_containers(tmp_path: Path, kind: str) -> None:
    source = containers(tmp_path / "in")[kind]
    assert_notes(
        group_warnings(assign_folds(read_source(source), 3)),
        ["3 of 3", "'speaker_id'", "--group speaker_id"],
    )
    folded = assign_folds(read_source(source, options=SourceOptions(group="speaker_id")), 3)
    assert len(folds_of_groups(folded)) == 3
    with refused("--group singer", "no singer"):
        read_source(source, options=SourceOptions(group="singer"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("{speaker}_*", ["dog/anna_1.wav", "cat/bob_1_2.wav"]),
        ("*_{speaker}", ["dog/1_anna.wav", "cat/1_bob.flac"]),
        ("*-{speaker}-*.wav", ["dog/1-anna-1.wav", "cat/2-bob-2.3.wav"]),
        ("{speaker}/*", ["dog/anna/1.wav", "cat/bob/1.wav", "cat/x/bob/2.wav"]),
    ],
)
def test_groups_are_parts_of_the_names_in_a_folder(
    tmp_path: Path, pattern: str, names: list[str]
) -> None:
    source = write_files(tmp_path, *names)
    manifest = read_source(source, options=SourceOptions(group=pattern))
    expected = ["anna" if "anna" in name else "bob" for name in manifest.clips["id"].to_pylist()]
    assert groups_of(manifest) == expected
    assert manifest.group is not None
    assert manifest.group.name == "speaker"


def test_speech_commands_have_the_speakers_of_their_names(tmp_path: Path) -> None:
    names = [f"{word}/{speaker}_nohash_0.wav" for word in ("yes", "no") for speaker in SPEAKERS]
    source = write_files(tmp_path, *names)
    write_table(tmp_path / "testing_list.txt", f"{names[0]}\n{names[3]}\n")
    options = SourceOptions(group="{speaker}_nohash_*")
    assert set(groups_of(read_source(source, options=options))) == set(SPEAKERS)


def test_patterns_that_fit_no_names_are_refused(tmp_path: Path) -> None:
    source = write_files(tmp_path, "dog/anna_1.wav", "cat/1.wav")
    with refused("--group speaker", "'folder'", remedy="--group '{speaker}_*'"):
        read_source(source, options=SourceOptions(group="speaker"))
    with refused("--group {speaker}_{take}", "'folder'", remedy=True):
        read_source(source, options=SourceOptions(group="{speaker}_{take}"))
    with refused("--group {speaker}_*", "1 of 2", "cat/1.wav", remedy=True):
        read_source(source, options=SourceOptions(group="{speaker}_*"))


def test_the_command_keeps_groups_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [line.partition(",")[0] for line in LINES]
    write_files(tmp_path, *names, content=encode(tone(0.1, 8_000), 8_000))
    source = write_table(tmp_path / "clips.csv", COLUMNS + "".join(LINES))
    command = ["manifest", source, "--out", f"{tmp_path}/m.parquet", "--group", "speaker"]
    assert main([*command, "--folds", "3", "--seed", "7"]) == 0
    clips = read_manifest(f"{tmp_path}/m.parquet").clips
    pairs = zip(clips["id"].to_pylist(), clips["fold"].to_pylist(), strict=True)
    assert len({(clip_id[0], fold) for clip_id, fold in pairs}) == 3
    assert capsys.readouterr().err == ""
    assert main(command) == 1
    assert_error_line(capsys.readouterr().err, "--group speaker", "--folds 5")
