"""The command line: what it refuses, how soon, and with which exit status."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import ray_job
from tests.support.errors import assert_error_line

PROJECT = Path(ray_job.__file__).parent
HEAVY = {"av", "botocore", "numpy", "pyarrow", "ray", "rich", "timm", "torch"}


def steps() -> dict[str, argparse.ArgumentParser]:
    actions = ray_job.make_parser()._actions
    (subparsers,) = (item for item in actions if isinstance(item, argparse._SubParsersAction))
    return dict(subparsers.choices)


def test_every_step_is_on_the_command_line() -> None:
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
    ("command", "values"),
    [
        (["prepare", "m.parquet", "--out", "d", "--store", "mp3"], ["argument --store", "'mp3'"]),
        (["prepare", "m.parquet", "--out", "http://host/d"], ["argument --out", "http"]),
        (
            ["prepare", "m.parquet", "--out", "d", "--max-reject-share", "2"],
            ["argument --max-reject-share", "got '2'"],
        ),
        (["train", "esc50", "--data", "d"], ["required", "--out"]),
        (
            ["train", "esc50", "--data", "d", "--out", "r", "--workers", "0"],
            ["argument --workers", "got '0'"],
        ),
        (["nothing"], ["'nothing'"]),
    ],
)
def test_refused_argument_exits_with_2_and_loads_nothing(
    command: list[str], values: list[str]
) -> None:
    status, error, libraries = loaded(*command)
    assert (status, libraries) == (2, set())
    assert_error_line(error, "", *values)


@pytest.mark.parametrize(
    ("command", "where", "value"),
    [
        (
            ["train", "esc50", "--data", "d", "--out", "r", "--set", "train.epoch=1"],
            "--set train.epoch=1",
            "train.epochs",
        ),
        (["train", "esc5", "--data", "d", "--out", "r"], "esc5", "esc50"),
        (["search", "esc5", "--data", "d", "--out", "r"], "esc5", "esc50"),
        (["train", "esc50", "--data", "/no/data", "--out", "r"], "/no/data", "card.json"),
        (["prepare", "/no/manifest.parquet", "--out", "d"], "/no/manifest.parquet", "`manifest`"),
    ],
)
def test_common_mistakes_are_refused_before_loading_pytorch(
    command: list[str], where: str, value: str
) -> None:
    status, error, libraries = loaded(*command)
    assert status == 1
    assert error.startswith("-c: error: ") or error.startswith("ray_job.py: error: ")
    assert_error_line(error, where, value)
    assert len(error.splitlines()) == 1
    assert not libraries & {"av", "botocore", "ray", "timm", "torch"}
