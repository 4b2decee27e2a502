"""`manifest` on the command line: what it prints, and where."""

from pathlib import Path

import pytest

from pipeline.manifest.layouts.read import detect
from ray_job import main
from tests.support.errors import assert_error_line


def folder_of(path: Path, sizes: dict[str, int]) -> str:
    for label, size in sizes.items():
        (path / label).mkdir(parents=True)
        for number in range(size):
            (path / label / f"{number}.wav").write_bytes(b"RIFF\0\0\0\0WAVE")
    return str(path)


def cells(printed: str) -> list[list[str]]:
    """The rows of a table in a terminal."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines()]


def test_clips_of_each_class_are_printed_by_fold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path / "in", {"dog": 6, "[b] :cat:": 8})
    assert main(["manifest", source, "--folds", "2", "--out", f"{tmp_path}/m.parquet"]) == 0
    printed = capsys.readouterr()
    rows = cells(printed.out)
    assert ["[b] :cat:", "4", "4", "8"] in rows
    assert ["dog", "3", "3", "6"] in rows
    assert printed.err == ""


def test_of_many_classes_the_largest_and_the_smallest_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path / "in", {f"c{number:02}": number for number in range(1, 26)})
    assert main(["manifest", source, "--out", f"{tmp_path}/m.parquet"]) == 0
    printed = capsys.readouterr()
    shown = [
        row for row in cells(printed.out) if row and row[0].startswith("c") and row[0] != "clips"
    ]
    names = [row[0] for row in shown if row[0][1:].isdecimal()]
    assert names == [f"c{number:02}" for number in [*range(25, 15, -1), *range(10, 0, -1)]]
    assert ["5 more", str(sum(range(11, 16)))] in cells(printed.out)
    warnings = printed.err.splitlines()
    assert [line.startswith(f"warning: {source}: ") for line in warnings] == [True, True]
    assert "4 of 25 classes" in warnings[0]


def test_faults_of_a_table_are_those_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "clips.CSV"
    for line, value in (("a.wav,cat", "a.wav"), ("https://host/a.wav,cat", "https://host/a.wav")):
        table.write_text(f"path,labels\na.wav,dog\n{line}\n")
        assert main(["manifest", str(table), "--out", f"{tmp_path}/m.PARQUET"]) == 1
        assert_error_line(capsys.readouterr().err, table, value)
    assert [path.name for path in tmp_path.iterdir()] == ["clips.CSV"]


def test_a_manifest_in_the_folder_of_its_clips_is_no_container(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder_of(tmp_path, {"dog": 6, "cat": 6})
    for _ in range(2):
        assert main(["manifest", source, "--folds", "2", "--out", f"{source}/m.parquet"]) == 0
    assert "1 .parquet" in capsys.readouterr().out
    for damaged in (b"PAR1 of another program", b"PAR1" + b"x" * 40 + b"\x28\0\0\0PAR1"):
        (tmp_path / "m.parquet").write_bytes(damaged)
        assert detect(source) == "parquet"


def test_an_output_of_another_kind_is_refused_before_the_source_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["manifest", f"{tmp_path}/none.csv", "--out", f"{tmp_path}/m.csv"]) == 1
    assert "m.csv: a manifest is a Parquet file" in capsys.readouterr().err
