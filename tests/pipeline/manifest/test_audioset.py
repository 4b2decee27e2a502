"""AudioSet as it circulates: every form of CSV and of names gives the same clips, all counted."""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.coverage import CommonClips
from pipeline.manifest.files import read_manifest
from pipeline.manifest.layouts import audioset
from pipeline.manifest.layouts.audioset_join import (
    Names,
    choose,
    match_names,
    pair,
    without_duplicates,
)
from pipeline.manifest.layouts.audioset_names import chosen_ids, ids_in_names
from pipeline.manifest.layouts.location import list_audio
from pipeline.manifest.layouts.options import SourceOptions
from pipeline.manifest.layouts.read import detect, read_source
from pipeline.manifest.layouts.segments import (
    SEGMENTS_SCHEMA,
    iter_segments,
    read_vocabulary,
    segment_keys,
    split_and_segments,
)
from pipeline.manifest.manifest import Manifest
from ray_job import main
from tests.support.audio import encode, tone
from tests.support.errors import assert_error_line, assert_notes, refused

CLASSES = 'index,mid,display_name\n1,/m/b,"Rain, drops"\n0,/m/a,"Dog"\n2,/t/c,Silence\n'
MIDS = ("/m/a", "/m/b", "/t/c")
OFFICIAL = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=3, num_positive_labels=5
# YTID, start_seconds, end_seconds, positive_labels
--PJHxphWEs, 30.000, 40.000, "/m/a,/t/c"
_0aE2O5G5_Y, 0.000, 10.000, "/m/b"
Y-_aaaaaaa_, 239.800, 249.800, "/m/a"
YYYYYYYYYYY, 0.000, 9.000, "/t/c"
"""
IDS = ("--PJHxphWEs", "_0aE2O5G5_Y", "Y-_aaaaaaa_", "YYYYYYYYYYY")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty folder `audio` beside AudioSet's CSVs for four segments of the split eval."""
    (tmp_path / "eval_segments.csv").write_text(OFFICIAL)
    (tmp_path / "class_labels_indices.csv").write_text(CLASSES)
    (tmp_path / "audio").mkdir()
    return tmp_path / "audio"


def write(folder: Path, *names: str, content: bytes = b"audio") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def read(source: Path, **options: Any) -> Manifest:
    segments = options.pop("segments", (str(source.parent / "eval_segments.csv"),))
    return read_source(str(source), options=SourceOptions(segments=segments, **options))


def rows(manifest: Manifest, *columns: str) -> list[tuple[object, ...]]:
    table = manifest.clips.select(list(columns)).to_pydict()
    return list(zip(*table.values(), strict=True))


# --- segment CSVs --------------------------------------------------------------------------------

LINES = [line.split(", ") for line in OFFICIAL.splitlines()[3:]]
WHOLE_NUMBERS = [[i, s.split(".")[0], e.split(".")[0], labels] for i, s, e, labels in LINES]


def read_all(given: list[str], mids: Sequence[str], **options: int) -> pa.Table:
    tables = iter_segments(given, mids, **options)
    return pa.concat_tables([SEGMENTS_SCHEMA.empty_table(), *tables])


def joined(lines: list[list[str]], separator: str = ",", end: str = "\n") -> str:
    return "".join(separator.join(line) + end for line in lines)


@pytest.mark.parametrize(
    "text",
    [
        OFFICIAL,
        OFFICIAL.partition("\n")[2],
        joined(LINES),
        joined(LINES, ", ").rstrip("\n"),
        "YTID,start_seconds,end_seconds,positive_labels\n" + joined(LINES),
        "# YTID, start_seconds, end_seconds, positive_labels\n\n" + joined(LINES) + "\n",
        joined(LINES, ", ", "\r\n"),
        "\ufeff" + OFFICIAL,
        '\ufeff"YTID","start"\r\n' + joined(LINES, ",", "\r\n"),
        joined(LINES).replace('"', ""),
        joined([[f'"{cell.strip(chr(34))}"' for cell in line] for line in LINES]),
        joined([[f"Y{i}.wav", *rest] for i, *rest in LINES]),
        joined(LINES).replace("/m/a,/t/c", "/m/a, /t/c"),
    ],
)
def test_circulating_forms_of_segment_csvs_are_read_alike(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    table = read_all([f"mine={path}"], MIDS)
    assert table.schema.equals(SEGMENTS_SCHEMA)
    assert table.to_pydict() == {
        "id": list(IDS),
        "start_s": [30.0, 0.0, 239.8, 0.0],
        "end_s": [40.0, 10.0, 249.8, 9.0],
        "split": ["mine"] * 4,
        "classes": [[0, 2], [1], [0], [2]],
    }


def test_seconds_may_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "eval_segments.csv"
    path.write_text(joined(WHOLE_NUMBERS))
    table = read_all([str(path)], MIDS)
    assert table["start_s"].to_pylist() == [30.0, 0.0, 239.0, 0.0]


def test_official_csvs_are_read_whole(real_data: Path) -> None:
    vocabulary = read_vocabulary(str(real_data / "audioset" / "class_labels_indices.csv"))
    assert len(vocabulary) == 527
    assert list(vocabulary.values())[:2] == ["Speech", "Male speech, man speaking"]
    paths = [real_data / "audioset" / f"{n}_segments.csv" for n in ("balanced_train", "eval")]
    mids = list(vocabulary)
    table = read_all([str(path) for path in paths], mids)
    expected = []
    for split, path in zip(("balanced", "eval"), paths, strict=True):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        for clip, start, end, labels in csv.reader(lines, skipinitialspace=True):
            classes = [mids.index(mid) for mid in labels.split(",")]
            expected.append((clip, float(start), float(end), split, classes))
    assert list(zip(*table.to_pydict().values(), strict=True)) == expected
    assert table.num_rows == 22_160 + 20_371
    assert len(table["classes"].combine_chunks().flatten()) == 52_882 + 51_804


def test_a_segment_listed_again_counts_once(tmp_path: Path) -> None:
    later = f"{IDS[1]},50,60,/m/a\n"
    for name in ("eval_segments.csv", "balanced_train_segments.csv"):
        (tmp_path / name).write_text(later + OFFICIAL)
    given = [str(tmp_path / name) for name in ("eval_segments.csv", "balanced_train_segments.csv")]
    table, num_duplicates = without_duplicates(read_all(given, MIDS))
    assert table["id"].to_pylist() == [IDS[1], *IDS]
    assert set(table["split"].to_pylist()) == {"eval"}
    assert num_duplicates == 5


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("/a/balanced_train_segments.csv", ("balanced", "/a/balanced_train_segments.csv")),
        ("/a/unbalanced_train_segments.csv", ("unbalanced", "/a/unbalanced_train_segments.csv")),
        ("s3://b/eval_segments.csv", ("eval", "s3://b/eval_segments.csv")),
        ("test=s3://b/x=1/a.csv", ("test", "s3://b/x=1/a.csv")),
        ("/x=1/eval_segments.csv", ("eval", "/x=1/eval_segments.csv")),
    ],
)
def test_segment_csvs_name_their_split(given: str, expected: tuple[str, str]) -> None:
    assert split_and_segments(given) == expected


GOOD = '--PJHxphWEs, 30.000, 40.000, "/m/a"\n'


@pytest.mark.parametrize(
    ("text", "line", "values"),
    [
        (GOOD + "short, 1, 2, /m/a\n", 2, ["YTID", "'short, 1, 2, /m/a'"]),
        (GOOD + "\n# x\n--PJHxphWEs, 1:30, 2, /m/a\n", 4, ["YTID", "'--PJHxphWEs, 1:30, 2, /m/a'"]),
        (GOOD + "--PJHxphWEs, 1, 2,\n", 2, ["YTID", "'--PJHxphWEs, 1, 2,'"]),
        ("YTID,start\nYTID,start\n" + GOOD, 2, ["YTID", "'YTID,start'"]),
        (GOOD + "--PJHxphWEs, 5, 5, /m/a\n", None, ["--PJHxphWEs", "ends"]),
        (GOOD + "--PJHxphWEs, 1000000, 1000001, /m/a\n", None, ["--PJHxphWEs", "late"]),
        (GOOD + 'YYYYYYYYYYY, 1, 2, "/m/a,/m/z"\n', None, ["'/m/z'", IDS[3], "--class-labels"]),
        ("# nothing\n", None, ["no segment"]),
        ("", None, ["no segment"]),
        ("\xff", None, ["UTF-8"]),
    ],
)
def test_broken_segment_csvs_are_refused(
    source: Path, text: str, line: int | None, values: list[str]
) -> None:
    path = source.parent / "eval_segments.csv"
    path.write_bytes(text.encode("latin-1"))
    with refused(f"{path}, line {line}" if line else path, *values):
        read(source)
    with refused(f"{path}, line {line}" if line else path, *values):
        read_all([str(path)], MIDS, block_bytes=50)


def test_faults_are_counted_in_all_of_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "eval_segments.csv"
    path.write_text("YTID, start\n" + OFFICIAL + "x, 1, 2, /m/a\n" + OFFICIAL + "y, 1, 2, /m/a\n")
    for block_bytes in (60, 150, 10_000):
        with refused(f"{path}, line 9", "YTID", "'x, 1, 2, /m/a'", 2):
            read_all([str(path)], MIDS, block_bytes=block_bytes)
    path.write_text(OFFICIAL)
    assert read_all([str(path)], MIDS, block_bytes=60).equals(read_all([str(path)], MIDS))


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("index,mid,display_name\n0,/m/a,Dog\n1,/m/b,Dog\n", ["two", "display_name 'Dog'"]),
        ("index,mid,display_name\n0,/m/a,Dog\n1,/m/a,Cat\n", ["two", "mid '/m/a'"]),
        ("index,mid,display_name\nx,/m/a,Dog\n", ["index", "'x'"]),
        ("index,mid\n0,/m/a\n", ["no column display_name", "index, mid"]),
    ],
)
def test_broken_label_csvs_are_refused(source: Path, text: str, values: list[str]) -> None:
    path = source.parent / "class_labels_indices.csv"
    path.write_text(text)
    with refused(path, *values):
        read(source)


def test_missing_audio_csvs_and_labels_are_refused(source: Path) -> None:
    with refused(source, "no such file or folder"):
        read(source)
    labels = source.parent / "class_labels_indices.csv"
    with refused("/none.csv", "no such file"):
        read(source, segments=("a=/none.csv",), class_labels=str(labels))
    for split in ("", "Train set"):
        given = f"{split}=/eval_segments.csv"
        with refused(f"--segments {given}", f"split {split!r}"):
            read(source, segments=(given,))
    with refused("--segments /x.csv", "split", "SPLIT=PATH"):
        read(source, segments=("/x.csv",))
    labels.unlink()
    with refused(labels, "no such file", remedy="--class-labels"):
        read(source)
    with refused("--segments", "audioset"):
        read_source(str(source), "audioset")


def test_audio_without_listed_segments_is_refused(source: Path) -> None:
    write(source, "dog/1.wav", "zzzzzzzzzzz.wav")
    with refused(source, "none of 2", "dog/1.wav", remedy="ID.flac"):
        read(source)


# --- names of files ------------------------------------------------------------------------------

FORMS = (
    "{id}",
    "{id}_{start}",
    "{id}_{start}_{end}",
    "{id}_{start_ms}",
    "{id}_{start_ms}_{end_ms}",
    "{id}_{whole_start}_{whole_end}",
    "{id}_{start:.3f}_{end:.3f}",
)
OF_DOWNLOADERS = ("A title - of [a video]_ [{id}]", "[{id}]", "Another-title, 1_2-{id}")


@st.composite
def named_segments(draw: st.DrawFn) -> list[tuple[str, float, str]]:
    """Ids of few characters, so that parts of one look like another, starts, names of files."""
    ids = draw(st.lists(st.text("Y_-0a", min_size=11, max_size=11), min_size=1, unique=True))
    segments = []
    for youtube_id in ids:
        start_s = draw(st.integers(0, 6000)) / 10
        form = draw(st.sampled_from((*FORMS, *OF_DOWNLOADERS)))
        prefix = draw(st.sampled_from(["", "Y"])) if form in FORMS else ""
        name = form.format(
            id=youtube_id,
            start=start_s,
            end=start_s + 10,
            start_ms=round(start_s * 1000),
            end_ms=round(start_s * 1000) + 10_000,
            whole_start=int(start_s),
            whole_end=int(start_s) + 10,
        )
        folder = draw(st.sampled_from(["", "balanced_train/", "Y_-/0/"]))
        suffix = draw(st.sampled_from([".wav", ".FLAC", ".m4a", ".w64", ".mkv", ".f251.webm", ""]))
        segments.append((youtube_id, start_s, folder + prefix + name + suffix))
    return segments


def parse_names(names: Sequence[str], ids: pa.Array) -> Names:
    candidates = ids_in_names(pa.chunked_array([names], pa.string()))
    return match_names(chosen_ids(candidates, pc.is_in(candidates["id"], ids)), ids)


@example(segments=[("0000000_000", 0.0, "Another-title, 1_2-0000000_000.wav")], whole=False)
@given(segments=named_segments(), whole=st.booleans())
def test_file_names_of_every_form_match_their_segment(
    segments: list[tuple[str, float, str]], whole: bool
) -> None:
    ids, starts, names = zip(*segments, strict=True)
    keys, known = segment_keys(pa.table({"id": ids, "start_s": starts}))
    parsed = parse_names(names, known)
    chosen, unreadable = choose(
        pair(parsed, keys, whole=whole), np.ones(len(names), dtype=bool), len(ids)
    )
    assert chosen.tolist() == list(range(len(ids)))
    assert not unreadable.any()


@pytest.mark.parametrize(
    "name",
    [
        "--PJHxphWEs_31.5.wav",
        "--PJHxphWEs_50_60.wav",
        "--PJHxphWEs_9999999.wav",
        "--PJHxphWE.wav",
        "--PJHxphWEsX.wav",
        "X--PJHxphWEs.wav",
        "YY--PJHxphWEs.wav",
        "--PJHxphWEs_30_40_50.wav",
        "--PJHxphWEs_.wav",
        "._--PJHxphWEs.wav",
        "--PJHxphWEs.wav/x.wav",
    ],
)
def test_other_file_names_match_no_segment(name: str) -> None:
    keys, known = segment_keys(pa.table({"id": IDS, "start_s": [30.0, 0.0, 239.8, 0.0]}))
    parsed = parse_names([name], known)
    assert all(len(part) == 0 for part in pair(parsed, keys, whole=True))


def test_files_named_in_different_forms_make_one_manifest(source: Path) -> None:
    write(source, "a/Y--PJHxphWEs_30.000_40.000.wav", "_0aE2O5G5_Y.mp3", "Y-_aaaaaaa__239_249.flac")
    manifest = read(source)
    assert manifest.labels == ("Dog", "Rain, drops", "Silence")
    assert rows(manifest, "id", "uri", "labels", "split", "start_s", "end_s") == [
        (
            IDS[0],
            f"{source}/a/Y--PJHxphWEs_30.000_40.000.wav",
            ["Dog", "Silence"],
            "eval",
            None,
            None,
        ),
        (IDS[1], f"{source}/_0aE2O5G5_Y.mp3", ["Rain, drops"], "eval", None, None),
        (IDS[2], f"{source}/Y-_aaaaaaa__239_249.flac", ["Dog"], "eval", None, None),
    ]


# --- whole videos --------------------------------------------------------------------------------


def aac(duration_s: float) -> bytes:
    """A file that libsndfile does not read."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(duration_s, 16_000)[None], "fltp", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return buffer.getvalue()


def test_long_files_are_cut_as_whole_videos(source: Path) -> None:
    write(source, f"{IDS[0]}.flac", content=encode(tone(13, 4000), 4000, "FLAC"))
    write(source, f"Y{IDS[1]}.m4a", content=aac(14))
    write(source, f"{IDS[2]}.wav", content=b"no audio")
    write(source, f"{IDS[3]}_0_9.wav", content=encode(tone(9, 4000), 4000))
    manifest = read(source)
    assert rows(manifest, "id", "start_s", "end_s") == [
        (IDS[0], 30.0, 40.0),
        (IDS[1], 0.0, 10.0),
        (IDS[2], 239.8, 249.8),
        (IDS[3], None, None),
    ]
    assert_notes(manifest.notes, ["3 files", "whole videos", "2 of 2", "12 s", "--cut yes"])
    assert read(source, cut="yes").clips["start_s"].null_count == 4
    assert read(source, cut="yes").notes == ()


def test_short_files_count_as_cut_already(source: Path) -> None:
    write(source, f"{IDS[0]}.wav", content=encode(tone(10, 4000), 4000))
    write(source, f"{IDS[1]}.m4a", content=aac(9.9))
    write(source, f"{IDS[2]}.wav", content=encode(tone(13, 4000), 4000))
    manifest = read(source)
    assert manifest.clips["start_s"].null_count == 3
    assert_notes(manifest.notes[:1], ["cut clips", "1 of 3", "--cut no"])
    assert rows(read(source, cut="no"), "start_s") == [(30.0,), (0.0,), (239.8,)]


def test_segments_of_one_video_get_distinct_ids(source: Path) -> None:
    path = source.parent / "more.csv"
    path.write_text(f"{IDS[0]},0,10,/m/a\n{IDS[0]},500,510,/m/b\n{IDS[1]},0.5,9,/m/a\n")
    segments = (f"train={path}",)
    write(source, f"{IDS[0]}.wav", f"{IDS[1]}_500.wav", f"{IDS[0]}_500_510.wav")
    whole = read(source, segments=segments, cut="no")
    assert rows(whole, "id", "uri", "start_s", "end_s") == [
        (f"{IDS[0]}_0", f"{source}/{IDS[0]}.wav", 0.0, 10.0),
        (f"{IDS[0]}_500000", f"{source}/{IDS[0]}_500_510.wav", None, None),
        (IDS[1], f"{source}/{IDS[1]}_500.wav", None, None),
    ]
    # The id alone does not say which of the two segments a clip is.
    cut = read(source, segments=segments, cut="yes")
    assert cut.clips["id"].to_pylist() == [f"{IDS[0]}_500000", IDS[1]]
    assert f"left out 1 file of no listed segment, such as {IDS[0]}.wav" in cut.notes


# --- partitions ----------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    segments=st.lists(named_segments(), min_size=1, max_size=3),
    num_partitions=st.integers(2, 9),
    rows_per_range=st.integers(1, 5),
    data=st.data(),
)
def test_manifest_does_not_depend_on_how_much_is_joined_at_once(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    segments: list[list[tuple[str, float, str]]],
    num_partitions: int,
    rows_per_range: int,
    data: st.DataObject,
) -> None:
    every = [segment for some in segments for segment in some]
    label = st.lists(st.sampled_from(MIDS), min_size=1, max_size=2, unique=True)
    lines = (
        f'{clip}, {start_s}, {start_s + 10}, "{",".join(data.draw(label))}"\n'
        for clip, start_s, _ in every
    )
    (source.parent / "eval_segments.csv").write_text("".join(lines))
    names = data.draw(st.lists(st.sampled_from([name for *_, name in every]), unique=True))
    paths = [f"{source}/{name}" for name in [*names, "other.wav", "zzzzzzzzzzz_30.wav"]]
    sizes = data.draw(st.lists(st.integers(0, 1), min_size=len(paths), max_size=len(paths)))
    listing = pa.record_batch({"path": paths, "size_bytes": sizes})
    monkeypatch.setattr(storage, "iter_files", lambda _: [listing])
    options = SourceOptions(
        segments=(str(source.parent / "eval_segments.csv"),),
        cut=data.draw(st.sampled_from(["yes", "no"])),
    )

    def outcome(num_partitions: int, rows_per_range: int) -> object:
        try:
            manifest = audioset.read(
                str(source), options, num_partitions=num_partitions, rows_per_range=rows_per_range
            )
        except UserError as error:
            return str(error)
        assert manifest.missing is not None
        videos = manifest.likely_groups[0].values.to_pylist()
        rows = manifest.clips.to_pylist(), manifest.missing.to_pylist()
        return *rows, videos, manifest.notes, manifest.coverage

    assert outcome(num_partitions, rows_per_range) == outcome(1, 1000)


# --- counts --------------------------------------------------------------------------------------


def test_coverage_counts_every_segment_and_file(source: Path) -> None:
    write(source, "other.wav", "zzzzzzzzzzz_30.wav", "b/notes.txt", f"{IDS[0]}_30.wav")
    write(source, f"a/{IDS[0]}_30.flac", f"{IDS[1]}_0.wav")
    write(source, f"{IDS[0]}_30.aac", f"{IDS[3]}_0.wav", content=b"")
    manifest = read(source)
    assert rows(manifest, "id", "uri") == [
        (IDS[0], f"{source}/{IDS[0]}_30.wav"),
        (IDS[1], f"{source}/{IDS[1]}_0.wav"),
    ]
    unlisted = [2, "segment", "other.wav", "zzzzzzzzzzz_30.wav"]
    assert_notes(manifest.notes, [1, "not audio"], [1, "another"], unlisted)
    assert manifest.missing is not None
    assert manifest.missing.to_pylist() == [
        {"id": IDS[2], "split": "eval", "labels": ["Dog"], "reason": "no file"},
        {"id": IDS[3], "split": "eval", "labels": ["Silence"], "reason": "file of 0 bytes"},
    ]
    counts = {"listed": 4, "found": 2, "missing": 1, "unreadable": 1, "found_s": 20.0}
    assert manifest.coverage is not None
    assert manifest.coverage.to_json() == {
        "source": str(source),
        "splits": {"eval": counts},
        "total": counts,
        "classes": [
            {"label": "Dog", "official": 2, "found": 1, "share": 0.5},
            {"label": "Silence", "official": 2, "found": 1, "share": 0.5},
            {"label": "Rain, drops", "official": 1, "found": 1, "share": 1.0},
        ],
        "common": None,
    }


@pytest.mark.parametrize(
    "listed", ["# from\nYTID,x\n{0}, 1\nY{1}.wav\nzzzzzzzzzzz\n", "{0}\n{1}\nz"]
)
def test_common_ids_mark_their_clips(source: Path, listed: str) -> None:
    write(
        source, *(f"{clip}_{start}.wav" for clip, start in zip(IDS, (30, 0, 239, 0), strict=True))
    )
    path = source.parent / "common.txt"
    path.write_text(listed.format(IDS[0], IDS[3]))
    manifest = read(source, common_ids=str(path))
    assert rows(manifest, "common") == [(True,), (False,), (False,), (True,)]
    assert manifest.coverage is not None
    assert manifest.coverage.common == CommonClips(listed=3, found=2)
    assert_notes(manifest.notes, ["2 of 3", "common ids"])
    path.write_text("zzzzzzzzzzz")
    with refused(path, "none of its 1 id"):
        read(source, common_ids=str(path))
    with refused("/none.txt", "no such file"):
        read(source, common_ids="/none.txt")


def test_common_ids_mark_clips_whose_names_start_with_y(source: Path) -> None:
    """As they do where a JSON of the AST authors' form names the files of YouTube's ids."""
    write(source, *(f"dog/Y{clip}.wav" for clip in IDS[:2]))
    path = source.parent / "common.csv"
    path.write_text(f"{IDS[1]}\nzzzzzzzzzzz\n")
    options = SourceOptions(segments=(f"eval={source.parent}/eval.json",), common_ids=str(path))
    data = [{"wav": f"dog/Y{clip}.wav", "labels": "/m/dog"} for clip in IDS[:2]]
    (source.parent / "eval.json").write_text(json.dumps({"data": data}))
    manifest = read_source(str(source), options=options)
    assert rows(manifest, "common") == [(False,), (True,)]
    assert_notes(manifest.notes, ["1 of 2", "common ids"])


def test_common_ids_mark_clips_in_other_layouts(source: Path) -> None:
    write(source, "dog/1.wav", "dog/2.flac")
    path = source.parent / "common.csv"
    path.write_text("name\ndog/2\n")
    manifest = read_source(str(source), options=SourceOptions(common_ids=str(path)))
    assert rows(manifest, "common") == [(False,), (True,)]
    assert manifest.coverage is None


# --- where the audio is --------------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("location", ["", "/0.tar"])
def test_audio_in_tars_is_located(source: Path, location: str) -> None:
    long = encode(tone(13, 4000), 4000)
    write_tar(
        source / "0.tar",
        {f"Y{IDS[1]}.wav": long, f"{IDS[0]}_30.wav": b"abc", f"{IDS[2]}.flac": b""},
    )
    manifest = read_source(
        f"{source}{location}",
        options=SourceOptions(segments=(str(source.parent / "eval_segments.csv"),)),
    )
    clips = manifest.clips.to_pylist()
    assert [(clip["id"], clip["start_s"]) for clip in clips] == [(IDS[0], None), (IDS[1], 0.0)]
    for clip, content in zip(clips, (b"abc", long), strict=True):
        stored = storage.read_range(clip["uri"], clip["offset_bytes"], clip["size_bytes"])
        assert stored == content
    assert [note for note in manifest.notes if "left out" in note] == []
    assert manifest.coverage is not None
    assert manifest.coverage.total.unreadable == 1


def test_csvs_overrule_labels_in_parquet(source: Path) -> None:
    table = {
        "video_id": [IDS[3], IDS[0], "zzzzzzzzzzz"],
        "audio": [{"bytes": b"x", "path": f"{name}.flac"} for name in "abc"],
        "human_labels": [["Cat"]] * 3,
    }
    pq.write_table(pa.table(table), source / "0.parquet")
    manifest = read(source)
    assert rows(manifest, "id", "uri", "labels", "row_group", "row") == [
        (IDS[0], f"{source}/0.parquet", ["Dog", "Silence"], 0, 1),
        (IDS[3], f"{source}/0.parquet", ["Silence"], 0, 0),
    ]


def test_layout_is_detected_from_options_and_files(source: Path) -> None:
    csvs = SourceOptions(segments=("train=x.csv",))
    assert detect(str(source), csvs) == "audioset"
    assert detect(str(source), SourceOptions(segments=("train=x.json",))) == "ast-json"
    assert detect("/x.json") == "ast-json"
    assert detect("/x.parquet") == "parquet"
    assert detect(str(source)) == "folder"
    write(source, "a/0.tar")
    assert detect(str(source)) == "webdataset"
    write(source, "a/0.parquet")
    assert detect(str(source)) == "parquet"
    write(source, "a/0.wav")
    assert detect(str(source)) == "folder"


def test_listing_skips_and_notes_other_files(source: Path) -> None:
    write(source, "x/a.WAV", "b.flac", "c.wav.part", "d.txt", content=b"12")
    listing, notes = list_audio(str(source))
    assert sorted(listing["name"].to_pylist()) == ["b.flac", "x/a.WAV"]
    assert listing["file_size_bytes"].to_pylist() == [2, 2]
    assert notes == ["left out 2 files that are not audio"]


def test_csvs_and_audio_are_read_from_a_bucket(s3: str) -> None:
    storage.write_bytes(f"{s3}/csv/eval_segments.csv", OFFICIAL.encode())
    storage.write_bytes(f"{s3}/csv/class_labels_indices.csv", CLASSES.encode())
    storage.write_bytes(f"{s3}/audio/x/Y{IDS[0]}.wav", encode(tone(13, 4000), 4000))
    storage.write_bytes(f"{s3}/audio/x/{IDS[3]}.wav", b"")
    options = SourceOptions(segments=(f"{s3}/csv/eval_segments.csv",))
    manifest = read_source(f"{s3}/audio", options=options)
    assert rows(manifest, "id", "uri", "start_s") == [(IDS[0], f"{s3}/audio/x/Y{IDS[0]}.wav", 30.0)]
    assert manifest.coverage is not None
    assert manifest.coverage.total.unreadable == 1


# --- the command ---------------------------------------------------------------------------------


def test_command_writes_manifest_coverage_and_missing_segments(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, f"{IDS[0]}_30.wav", f"{IDS[3]}_0_9.flac", content=b"fLaC")
    folder = source.parent
    (folder / "ids.txt").write_text(IDS[3])
    output = folder / "out" / "clips.parquet"
    command = ["manifest", str(source), "--out", str(output), "--common-ids", f"{folder}/ids.txt"]
    command += ["--segments", f"test={folder}/eval_segments.csv", "--cut", "yes"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "4 listed, 2 found, 2 missing, 0 unreadable" in printed
    manifest = read_manifest(str(output))
    assert rows(manifest, "id", "split", "common") == [
        (IDS[0], "test", False),
        (IDS[3], "test", True),
    ]
    coverage = json.loads((folder / "out" / "clips.coverage.json").read_text())
    assert manifest.coverage is not None
    assert coverage == manifest.coverage.to_json()
    assert coverage["common"] == {"listed": 1, "found": 1}
    missing = pq.read_table(folder / "out" / "clips.missing.parquet")
    assert missing["id"].to_pylist() == [IDS[1], IDS[2]]
    assert "Rain, drops" in (folder / "out" / "clips.coverage.html").read_text()


def test_command_explains_wrong_options(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["manifest", str(source), "--out", f"{source}/x.parquet", "--segments", "a.csv"]
    assert main(command) == 1
    assert_error_line(capsys.readouterr().err, "--segments a.csv", "split", "SPLIT=PATH")
    with pytest.raises(SystemExit):
        main([*command, "--column", "path"])
    assert_error_line(capsys.readouterr().err, "argument --column", "NAME=COLUMN", "got 'path'")
