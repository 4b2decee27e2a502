"""Files that killed processes left unfinished, and those that are being written."""

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.storage.abandoned import remove_abandoned


@pytest.fixture(autouse=True)
def new_process() -> None:
    """As in a process that has written nothing yet."""
    remove_abandoned.cache_clear()


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        pass
    return process.pid


def write_and_die(path: str) -> None:
    with storage.new_file(path) as file:
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "data" / "card.json"
    writer = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(str(target),))
    writer.start()
    writer.join(60)
    (left,) = target.parent.iterdir()
    assert left.name.startswith(".card.json.")
    storage.write_bytes(str(target.with_name("index.parquet")), b"whole")
    assert [path.name for path in target.parent.iterdir()] == ["index.parquet"]


def test_files_of_the_living_and_of_others_stay(tmp_path: Path) -> None:
    dead = dead_process()
    kept = [".card.json", f".card.json.{dead}", f"card.json.{dead}.0123abcd", ".x.12.zzzzzzzz"]
    kept.append(f".card.json.{os.getpid()}.0123abcd")  # of a process that lives
    gone = [f".card.json.{dead}.0123abcd", f".train-00000.tar.{dead}.89abcdef"]
    for name in [*kept, *gone]:
        (tmp_path / name).write_bytes(b"")
    with storage.new_file(str(tmp_path / "new")) as file:
        file.write(b"x")
        remove_abandoned.cache_clear()
        storage.write_bytes(str(tmp_path / "other"), b"")
        file.commit()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "new", "other"])


@pytest.mark.timeout(20)
def test_pipe_of_such_a_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".x.{dead_process()}.0123abcd")
    storage.write_bytes(str(tmp_path / "new"), b"")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_locked_file_of_another_machine_stays(tmp_path: Path) -> None:
    """Its number is of no process here, but it is locked."""
    name = f".card.json.{dead_process()}.0123abcd"
    with storage.new_file(str(tmp_path / "card.json")) as file:
        (written,) = tmp_path.iterdir()
        written.rename(tmp_path / name)
        remove_abandoned.cache_clear()
        remove_abandoned(str(tmp_path))
        assert (tmp_path / name).exists()
        del file
