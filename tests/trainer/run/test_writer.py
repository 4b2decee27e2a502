"""One process at a time writes into a run folder."""

import errno
import sys
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.support.errors import assert_names, refused
from trainer.run.writer import alone_in, check_writer, remove_unfinished, take_over


def test_second_process_in_a_run_folder_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    with alone_in(run):
        with refused(run, "another process", remedy="--out"), alone_in(run):
            pass
        with alone_in(f"{run}-2"):
            pass
    with alone_in(run):
        pass


@pytest.mark.parametrize("call", ["fcntl.flock", "os.open"])
def test_folder_without_locks_is_used_with_a_note(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(call, refuse)
    with alone_in(str(tmp_path)):
        assert_names(caplog.text, f"{tmp_path}", "Operation not supported")


def test_lock_ends_with_its_process(tmp_path: Path) -> None:
    program = (
        "import os, sys; from trainer.run.writer import alone_in\n"
        "with alone_in(sys.argv[1]):\n"
        "    print('locked', flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with refused(tmp_path, "another process"), alone_in(str(tmp_path)):
            pass
        other.communicate()
    with alone_in(str(tmp_path)):
        pass


def test_unwritable_folder_is_refused(tmp_path: Path) -> None:
    # Not even root can write this lock file.
    (tmp_path / ".lock").mkdir()
    with refused(tmp_path, "Is a directory"), alone_in(str(tmp_path)):
        pass


def test_only_the_latest_writer_may_write(tmp_path: Path) -> None:
    run = str(tmp_path)
    first = take_over(run)
    check_writer(run, first)
    second = take_over(run)
    check_writer(run, second)
    with refused(run, "another `train`"):
        check_writer(run, first)


@pytest.mark.parametrize("content", [None, "", "{", "{}", "null", "[]"])
def test_missing_or_damaged_writer_file_is_ignored(tmp_path: Path, content: str | None) -> None:
    token = take_over(str(tmp_path))
    (tmp_path / "writer.json").unlink()
    if content is not None:
        (tmp_path / "writer.json").write_text(content)
    check_writer(str(tmp_path), token)


def test_unfinished_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    kept = ["run.json", ".lock", "checkpoints/step-00000004.pt", "ray/.notes", ".hidden.1.file"]
    left = [".run.json.12.0123abcd", "checkpoints/.step-00000005.pt.12345.0123abcd"]
    for name in kept + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_unfinished(str(tmp_path))
    assert all((tmp_path / name).exists() for name in kept)
    assert not any((tmp_path / name).exists() for name in left)
