"""Fetching files, ranges and Parquet rows: contents and errors keep the order of clips."""

import os
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.manifest.layouts.parquet_audio import read_audio
from pipeline.manifest.manifest import Clip
from pipeline.shards import fetch
from pipeline.shards.fetch import fetch_ahead, fetch_reject
from tests.support.errors import refused


def clip(clip_id: object, uri: str, **columns: int) -> Clip:
    return replace(Clip(id=str(clip_id), uri=uri, labels=()), **columns)  # type: ignore[arg-type]


def reason(error: object) -> str:
    assert isinstance(error, Exception)
    return fetch_reject(error, "uri").reason


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path if request.param == "local" else request.getfixturevalue("s3"))


def test_contents_and_errors_keep_the_order_of_clips(folder: str) -> None:
    clips = [clip(number, storage.join(folder, str(number))) for number in range(20)]
    missing = (0, 7, 19)
    for number, row in enumerate(clips):
        if number not in missing:
            storage.write_bytes(row.uri, str(number).encode())
    for num_ahead in (1, 3, 50):
        contents = list(fetch_ahead(clips, num_ahead))
        assert len(contents) == 20
        for number, content in enumerate(contents):
            if number in missing:
                assert reason(content) == "not found"
            else:
                assert content == str(number).encode()


@settings(max_examples=30)
@given(
    picks=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=20),
    num_ahead=st.integers(1, 4),
)
def test_parquet_rows_and_file_ranges_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, picks: list[tuple[int, int]], num_ahead: int
) -> None:
    folder = tmp_path_factory.mktemp("audio")
    contents = [f"group {group} row {row}".encode() for group in range(3) for row in range(4)]
    audio = pa.array([{"bytes": content, "path": None} for content in contents])
    pq.write_table(pa.table({"audio": audio}), folder / "a.parquet", row_group_size=4)
    (folder / "a.tar").write_bytes(b"".join(contents))
    size = len(contents[0])
    clips = []
    for number, (group, row) in enumerate(picks):
        if number % 3:
            clips.append(clip(number, str(folder / "a.parquet"), row_group=group, row=row))
        else:
            location = {"offset_bytes": (group * 4 + row) * size, "size_bytes": size}
            clips.append(clip(number, str(folder / "a.tar"), **location))
    expected = [f"group {group} row {row}".encode() for group, row in picks]
    assert list(fetch_ahead(clips, num_ahead)) == expected


def test_neighbours_in_a_row_group_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = pa.array([{"bytes": bytes([row]), "path": None} for row in range(100)])
    pq.write_table(pa.table({"audio": audio}), tmp_path / "a.parquet", row_group_size=50)
    spy = Mock(wraps=read_audio)
    monkeypatch.setattr(fetch, "read_audio", spy)
    clips = [
        clip(n, str(tmp_path / "a.parquet"), row_group=n // 50, row=n % 50) for n in range(100)
    ]
    assert list(fetch_ahead(clips, 8)) == [bytes([row]) for row in range(100)]
    # Two threads read them, in any order.
    reads = sorted(call.args[1:] for call in spy.call_args_list)
    assert reads == [(0, list(range(50))), (1, list(range(50)))]


def test_damaged_container_costs_only_its_clips(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    rows = pa.array([{"bytes": b"x", "path": None}, {"bytes": None, "path": None}])
    storage.write_table(storage.join(folder, "a.parquet"), pa.table({"audio": rows}))
    storage.write_bytes(storage.join(folder, "broken.parquet"), b"PAR1 and no more")
    storage.write_bytes(storage.join(folder, "a.tar"), b"0123456789")
    storage.write_bytes(storage.join(folder, "dir.parquet", "file"), b"")
    storage.write_table(storage.join(folder, "text.parquet"), pa.table({"text": ["x"]}))
    contents = list(
        fetch_ahead(
            [
                clip(0, storage.join(folder, "a.parquet"), row_group=0, row=0),
                clip(1, storage.join(folder, "a.parquet"), row_group=0, row=1),
                clip(2, storage.join(folder, "broken.parquet"), row_group=0, row=0),
                clip(3, storage.join(folder, "none.parquet"), row_group=0, row=0),
                clip(4, storage.join(folder, "a.tar"), offset_bytes=8, size_bytes=2),
                clip(5, storage.join(folder, "a.tar"), offset_bytes=8, size_bytes=3),
                clip(6, storage.join(folder, "dir.parquet"), row_group=0, row=0),
                clip(7, storage.join(folder, "a\0b.parquet"), row_group=0, row=0),
                clip(8, storage.join(folder, "text.parquet"), row_group=0, row=0),
            ],
            2,
        )
    )
    assert contents[:2] == [b"x", b""]
    assert contents[4] == b"89"
    assert [reason(contents[number]) for number in (2, 3, 5)] == [
        "its Parquet file is damaged",
        "not found",
        "its container ends before the clip",
    ]
    assert all(reason(content) for content in contents[6:])


def test_named_pipe_is_rejected_without_waiting(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    clips = [clip(0, path), clip(1, path, row_group=0, row=0)]
    assert [reason(content) for content in fetch_ahead(clips, 2)] == ["not a regular file"] * 2


def test_too_large_file_is_not_read(folder: str) -> None:
    storage.write_bytes(storage.join(folder, "a.tar"), bytes(100))
    audio = pa.array([{"bytes": bytes(size), "path": None} for size in (10, 11)])
    storage.write_table(storage.join(folder, "a.parquet"), pa.table({"audio": audio}))
    clips = [
        clip(0, storage.join(folder, "a.tar")),
        clip(1, storage.join(folder, "a.tar"), offset_bytes=5, size_bytes=10),
        clip(2, storage.join(folder, "a.tar"), offset_bytes=5, size_bytes=11),
        clip(3, storage.join(folder, "a.parquet"), row_group=0, row=0),
        clip(4, storage.join(folder, "a.parquet"), row_group=0, row=1),
    ]
    contents = list(fetch_ahead(clips, 2, 10))
    assert (contents[1], contents[3]) == (bytes(10), bytes(10))
    for number in (0, 2, 4):
        assert reason(contents[number]) == "larger than the limit on files; --max-file-mb raises it"
    assert list(fetch_ahead(clips[:1], 2, 100)) == [bytes(100)]


def test_storage_error_stops_the_job() -> None:
    error = OSError(5, "Input/output error")
    with refused("/a.wav", "Input/output error", remedy="resume"):
        fetch_reject(error, "/a.wav")


def test_closing_ends_the_fetching_threads(folder: str) -> None:
    before = set(threading.enumerate())
    contents = fetch_ahead([clip(n, storage.join(folder, str(n))) for n in range(20)], 2)
    assert isinstance(next(contents), FileNotFoundError)
    contents.close()
    assert {thread for thread in threading.enumerate() if "Pool" in thread.name} <= before


def test_no_clips_give_no_contents() -> None:
    assert list(fetch_ahead([], 4)) == []
