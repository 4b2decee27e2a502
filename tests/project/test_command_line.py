"""The command line: what it refuses, how soon, and with which exit status."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import ray_job

PROJECT = Path(ray_job.__file__).parent
HEAVY = {"av", "botocore", "numpy", "pyarrow", "ray", "rich", "timm", "torch"}


def steps() -> dict[str, argparse.ArgumentParser]:
    actions = ray_job.make_parser()._actions
    (found,) = (one for one in actions if isinstance(one, argparse._SubParsersAction))
    return dict(found.choices)


def test_every_step_file_is_on_the_command_line() -> None:
    files = {
        path.stem
        for package in ("pipeline", "trainer", "cluster")
        for path in (PROJECT / package / "commands").glob("*.py")
        if "STEP = Step(" in path.read_text() or "return Step(" in path.read_text()
    }
    assert len(files) == len(steps())
    assert list(steps()) == [step.name for step in ray_job.STEPS]


@pytest.mark.parametrize("step", list(steps()))
def test_every_step_explains_itself(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        ray_job.main([step, "--help"])
    assert ended.value.code == 0
    assert f"example: ray_job.py {step}" in capsys.readouterr().out


def loaded(*command: str) -> tuple[int, str, set[str]]:
    """Exit status of a command in a new process, its error, and the heavy libraries it loaded."""
    program = (
        "import sys, ray_job\n"
        "try:\n    status = ray_job.main(sys.argv[1:])\n"
        "except SystemExit as ended:\n    status = ended.code\n"
        f"print(status, *({HEAVY} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    status, *libraries = done.stdout.splitlines()[-1].split()
    return int(status), done.stderr, set(libraries)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["prepare", "m.parquet", "--out", "d", "--store", "mp3"], "invalid choice: 'mp3'"),
        (["prepare", "m.parquet", "--out", "http://host/d"], "local or s3://bucket/key, not http"),
        (["prepare", "m.parquet", "--out", "d", "--max-reject-share", "2"], "a number from 0 to 1"),
        (["train", "esc50", "--data", "d"], "required: --out"),
        (["train", "esc50", "--data", "d", "--out", "r", "--workers", "0"], "at least 1, got '0'"),
        (["nothing"], "invalid choice: 'nothing'"),
    ],
)
def test_a_refused_argument_is_2_and_loads_nothing(command: list[str], told: str) -> None:
    status, error, libraries = loaded(*command)
    assert (status, libraries) == (2, set())
    assert told in error


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["train", "esc50", "--data", "d", "--out", "r", "--set", "train.epoch=1"], "train.epochs"),
        (["train", "esc5", "--data", "d", "--out", "r"], "esc50"),
        (["train", "esc50", "--data", "/no/data", "--out", "r"], "/no/data"),
        (["prepare", "/no/manifest.parquet", "--out", "d"], "/no/manifest.parquet"),
    ],
)
def test_what_users_get_wrong_most_often_is_told_before_pytorch_is_loaded(
    command: list[str], told: str
) -> None:
    status, error, libraries = loaded(*command)
    assert status == 1
    assert error.startswith("-c: error: ") or error.startswith("ray_job.py: error: ")
    assert told in error
    assert len(error.splitlines()) == 1
    assert not libraries & {"av", "botocore", "ray", "timm", "torch"}
