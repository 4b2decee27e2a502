"""Tags as CSV, JSON Lines, label tracks and selection tables: what they say, and safe names."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from tests.support.tags import Window, write_tags
from trainer.tagging import assemble
from trainer.tagging.events import Event, events_of
from trainer.tagging.file_names import FileNames
from trainer.tagging.formats import audacity_labels, csv_of_windows, json_lines, write_formats
from trainer.tagging.settings import Format

ALL: tuple[Format, ...] = ("csv", "jsonl", "audacity", "raven")
TWO: dict[str, list[Window]] = {
    "a.wav": [(0.0, 2.0, {"Dog, wild": 0.9, "Rain": 0.1}), (1.0, 3.0, {"Dog, wild": 0.75})],
    "sub folder/b.wav": [(0.0, 2.0, {}), (1.0, 2.5, {"Rain": 1 / 3})],
}


def files_of(folder: Path) -> dict[str, bytes]:
    known = ("windows.parquet", "recordings.parquet", "rejects.parquet", "tags.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in known
    }


def events(*windows: Window, name: str = "a.wav") -> list[Event]:
    batch = pa.RecordBatch.from_pylist(
        [
            {
                "recording": name,
                "start_s": start_s,
                "end_s": end_s,
                "labels": list(tags),
                "scores": list(tags.values()),
            }
            for start_s, end_s, tags in windows
        ]
    )
    ((_, found),) = events_of([batch.slice(0, 1), batch.slice(1)])
    return found


def spans(found: list[Event]) -> list[tuple[str, float, float, float]]:
    return [(one.label, one.start_s, one.end_s, one.score) for one in found]


def test_csv_has_a_line_a_tag(tmp_path: Path) -> None:
    write_formats(str(tmp_path), ["csv"], write_tags(tmp_path, TWO, faults={"a.wav": "cut short"}))
    assert (tmp_path / "windows.csv").read_text() == (
        "recording,start_s,end_s,label,score\n"
        'a.wav,0.0,2.0,"Dog, wild",0.9\n'
        "a.wav,0.0,2.0,Rain,0.1\n"
        'a.wav,1.0,3.0,"Dog, wild",0.75\n'
        "sub folder/b.wav,1.0,2.5,Rain,0.33333334\n"
    )
    with (tmp_path / "recordings.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["recording"], first["duration_s"], first["fault"]) == (
        "a.wav",
        "3.0",
        "cut short",
    )
    assert (first["max_label"], first["max_score"]) == ("Dog, wild", "0.9")
    assert (first["mean_label"], first["mean_score"]) == ("Dog, wild", "0.45")
    assert (second["num_windows"], second["fault"]) == ("2", "")


def test_cells_that_look_like_formulas_or_hold_quotes_are_read_back(tmp_path: Path) -> None:
    names = ["=1+1.wav", "+a.wav", "-b.wav", "@c.wav", 'say "hi",\nü.wav']
    tags = {name: [(0.0, 1.0, {"=cmd|'/c calc'!A1": 0.5})] for name in names}
    write_formats(str(tmp_path), ["csv"], write_tags(tmp_path, tags))
    with (tmp_path / "windows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["recording"] for row in rows] == names
    assert {row["label"] for row in rows} == {"=cmd|'/c calc'!A1"}


def test_json_lines_are_the_rows_of_the_table(tmp_path: Path) -> None:
    write_formats(str(tmp_path), ["jsonl"], write_tags(tmp_path, TWO))
    lines = (tmp_path / "windows.jsonl").read_text().splitlines()
    rows = storage.read_table(str(tmp_path / "windows.parquet")).to_pylist()
    assert len(lines) == len(rows) == 4
    for line, row in zip(map(json.loads, lines), rows, strict=True):
        assert line.keys() == row.keys()
        assert {**line, "scores": None} == {**row, "scores": None}
        assert np.float32(line["scores"]).tolist() == row["scores"]


@given(st.lists(st.lists(st.floats(width=16), max_size=4), max_size=6), st.integers(0, 3))
def test_vectors_of_half_precision_are_read_back(vectors: list[list[float]], first: int) -> None:
    column = pa.array([np.array(one, np.float16) for one in vectors], pa.list_(pa.float16()))
    batch = pa.RecordBatch.from_arrays([column], ["all_scores"]).slice(min(first, len(vectors)))
    (text,) = json_lines([batch])
    lines = [json.loads(line)["all_scores"] for line in text.decode().splitlines()]
    for line, vector in zip(lines, vectors[first:], strict=True):
        expected = [value if np.isfinite(value) else None for value in vector]
        assert [one if one is None else float(np.float16(one)) for one in line] == expected


def test_neighbouring_windows_of_a_class_are_one_event() -> None:
    found = events(
        (0.0, 2.0, {"dog": 0.4, "rain": 0.2}),
        (1.0, 3.0, {"dog": 0.9}),
        (2.0, 4.0, {"rain": 0.3}),
        (3.0, 5.0, {"dog": 0.1, "rain": 0.1}),
    )
    assert spans(found) == [
        ("rain", 0.0, 2.0, 0.2),
        ("dog", 0.0, 3.0, 0.9),
        ("rain", 2.0, 5.0, 0.3),
        ("dog", 3.0, 5.0, 0.1),
    ]


def test_windows_that_do_not_touch_are_separate_events() -> None:
    found = events((0.0, 1.0, {"dog": 0.4}), (5.0, 6.0, {"dog": 0.9}), (6.0, 7.0, {"dog": 0.2}))
    assert spans(found) == [("dog", 0.0, 1.0, 0.4), ("dog", 5.0, 7.0, 0.9)]


def test_label_track_is_what_audacity_imports(tmp_path: Path) -> None:
    write_formats(str(tmp_path), ["audacity"], write_tags(tmp_path, TWO))
    assert files_of(tmp_path) == {
        "audacity/a.wav.txt": b"0.000000\t2.000000\tRain\n0.000000\t3.000000\tDog, wild\n",
        "audacity/sub folder/b.wav.txt": b"1.000000\t2.500000\tRain\n",
    }


def test_a_label_cannot_begin_another_line_or_field() -> None:
    event = Event(label="a\tb\nc\r\u2028d", start_s=0, end_s=1, score=0.5)
    assert audacity_labels([event]) == b"0.000000\t1.000000\ta b c d\n"
    nameless = Event(label=" \n", start_s=0, end_s=1, score=0.5)
    assert audacity_labels([nameless]) == b"0.000000\t1.000000\t?\n"


def test_selection_table_has_the_columns_of_raven(tmp_path: Path) -> None:
    card = write_tags(tmp_path, TWO, rates_hz={"a.wav": 8_000, "sub folder/b.wav": 48_000})
    write_formats(str(tmp_path), ["raven"], card)
    with (tmp_path / "raven" / "a.wav.selections.txt").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows[1] == {
        "Selection": "2",
        "View": "Spectrogram 1",
        "Channel": "1",
        "Begin Time (s)": "0.000000",
        "End Time (s)": "3.000000",
        "Low Freq (Hz)": "0",
        "High Freq (Hz)": "4000",
        "Label": "Dog, wild",
        "Score": "0.9000",
    }
    other = (tmp_path / "raven" / "sub folder" / "b.wav.selections.txt").read_text()
    assert other.splitlines()[1].split("\t")[6] == "8000"


def test_recording_without_tags_has_empty_files(tmp_path: Path) -> None:
    card = write_tags(tmp_path, {"quiet.wav": [(0.0, 2.0, {})]})
    write_formats(str(tmp_path), ALL, card)
    assert (tmp_path / "audacity" / "quiet.wav.txt").read_bytes() == b""
    assert len((tmp_path / "raven" / "quiet.wav.selections.txt").read_text().splitlines()) == 1
    assert len((tmp_path / "windows.csv").read_text().splitlines()) == 1
    assert (tmp_path / "recordings.csv").read_text().endswith(",,,,\n")


def test_killed_and_resumed_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {f"{number:03d}.wav": TWO["a.wav"] for number in range(80)}
    for name in ("whole", "resumed"):
        card = write_tags(tmp_path / name, tags)
    write_formats(str(tmp_path / "whole"), ALL, card)
    write, num_written = storage.write_bytes, 0

    def dies(path: str, data: bytes) -> None:
        nonlocal num_written
        num_written += 1
        if num_written > 50:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(storage, "write_bytes", dies)
    with pytest.raises(KeyboardInterrupt):
        write_formats(str(tmp_path / "resumed"), ALL, card)
    monkeypatch.setattr(storage, "write_bytes", write)
    left = files_of(tmp_path / "resumed")
    assert 2 < len(left) < 163
    write_formats(str(tmp_path / "resumed"), ALL, card)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")
    assert len(files_of(tmp_path / "whole")) == 3 + 2 * 80


def test_files_that_are_there_are_left_alone(tmp_path: Path) -> None:
    card = write_tags(tmp_path, TWO)
    write_formats(str(tmp_path), ["audacity"], card)
    edited = tmp_path / "audacity" / "sub folder" / "b.wav.txt"
    edited.write_text("edited by hand")
    write_formats(str(tmp_path), ALL, card)
    assert edited.read_text() == "edited by hand"
    assert (tmp_path / "windows.jsonl").exists()


def test_formats_are_written_in_a_bucket(s3: str, tmp_path: Path) -> None:
    card = write_tags(tmp_path, TWO)
    for name in ("windows.parquet", "recordings.parquet"):
        storage.write_bytes(f"{s3}/tags/{name}", (tmp_path / name).read_bytes())
    for _ in range(2):
        write_formats(f"{s3}/tags", ALL, card)
    names = {path.removeprefix(f"{s3}/tags/") for path in storage.list_files(f"{s3}/tags")}
    assert {"windows.csv", "audacity/sub folder/b.wav.txt", "raven/a.wav.selections.txt"} < names


def test_memory_does_not_grow_with_the_number_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tags(tmp_path, {"a.wav": [(float(n), n + 2.0, {"dog": 0.5}) for n in range(5_000)]})
    monkeypatch.setattr(assemble, "_BATCH_ROWS", 100)
    pieces = list(csv_of_windows(assemble.read_batches(str(tmp_path / "windows.parquet"))))
    assert max(piece.count(b"\n") for piece in pieces) <= 100


@pytest.mark.parametrize(
    ("recording", "name"),
    [
        ("a/b.wav", "a/b.wav.txt"),
        ("/abs/b.wav", "abs/b.wav.txt"),
        ("../../etc/passwd", "__/__/etc/passwd.txt"),
        ("a//./b", "a/_/b.txt"),
        ("", "_.txt"),
        ("/", "_.txt"),
        (".hidden", "_hidden.txt"),
        ("2024-01-01T10:00:00.wav", "2024-01-01T10_00_00.wav.txt"),
        ("C:\\sounds\\a.wav", "C__sounds_a.wav.txt"),
        ("con/nul.wav/x ", "_con/_nul.wav/x_.txt"),
        ("Größe „x“ it's.wav", "Größe „x“ it's.wav.txt"),
        ("a\nb\x00.wav", "a_b_.wav.txt"),
        ("dots./x", "dots_/x.txt"),
    ],
)
def test_names_are_safe_and_stay_below_the_folder(recording: str, name: str) -> None:
    assert FileNames(".txt").add(recording) == name


def test_names_that_would_be_one_file_are_told_apart() -> None:
    clashing = ["a:b", "a_b", "A_b", "a_B", "x", "x.txt/y", "é", "e\u0301", "/x", "z.txt/1", "z"]
    names = FileNames(".txt")
    paths = [names.add(one) for one in clashing]
    keys = {path.casefold() for path in paths}
    assert len(keys) == len(clashing)
    assert not any(one.startswith(f"{other}/") for one in keys for other in keys)
    assert paths[0] == "a_b.txt"
    assert paths[1].startswith("a_b~")


@given(st.lists(st.text(st.sampled_from("aA./\\:~ \né\ud800"), max_size=12), unique=True))
def test_any_ids_have_files_of_their_own(recordings: list[str]) -> None:
    names = FileNames(".txt")
    paths = [names.add(one) for one in recordings]
    assert len({path.casefold() for path in paths}) == len(recordings)
    for path in paths:
        parts = path.split("/")
        assert not path.startswith("/")
        assert not {"", ".", ".."} & set(parts)
        assert not set('<>:"\\|?*\n') & set(path)


def test_long_names_are_cut() -> None:
    names = FileNames(".selections.txt")
    first, second = names.add("ü" * 300 + "1.wav"), names.add("ü" * 300 + "2.wav")
    assert first != second
    assert max(len(one.encode()) for one in (first, second)) < 230
