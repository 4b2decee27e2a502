"""What `serve` refuses before Ray starts, and what it warns of."""

import socket
import sys
from pathlib import Path

import pytest

import ray_job
from tests.support.errors import assert_error_line
from tests.support.tagging import Trained
from trainer.serving.settings import TOKEN_VARIABLE


@pytest.fixture(autouse=True)
def no_ray_and_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    # Whatever would come after the checks fails to load.
    monkeypatch.setitem(sys.modules, "cluster.session", None)


@pytest.mark.parametrize(
    ("options", "where", "values", "status"),
    [
        (("--port", "70000"), "argument --port", ("'70000'",), 2),
        (("--port", "-1"), "argument --port", (), 2),
        (("--max-mb", "0"), "--max-mb", ("0",), 1),
        (("--max-mb", "nan"), "--max-mb", ("nan",), 1),
        (("--max-duration-s", "1e9"), "--max-duration-s", ("86400",), 1),
        (("--window", "0"), "argument --window", ("'0'",), 2),
        (("--window", "4000"), "--window", ("3600", "4000"), 1),
        (("--hop", "0.01"), "--hop", ("0.05", "0.01"), 1),
        (("--gpus-per-replica", "2"), "argument --gpus-per-replica", ("'2'",), 2),
        (("--replicas", "0"), "argument --replicas", ("'0'",), 2),
        (("--token-file", "/no/token"), "/no/token", ("No such file",), 1),
        (("--host", "no.such.host.invalid"), "--host no.such.host.invalid", (), 1),
        (("--weights", "best"), "run-0", ("best",), 1),
    ],
)
def test_wrong_options_are_one_line(
    options: tuple[str, ...],
    where: str,
    values: tuple[str, ...],
    status: int,
    trained: Trained,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        found = ray_job.main(["serve", trained.run, "--port", "0", *options])
    except SystemExit as ended:
        found = int(ended.code or 0)
    assert found == status
    error = capsys.readouterr().err
    assert_error_line(error, "" if status == 2 or where == "run-0" else where, *values)
    assert where in error


def test_a_missing_model_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ray_job.main(["serve", str(tmp_path / "no"), "--port", "0"]) == 1
    assert str(tmp_path / "no") in capsys.readouterr().err.splitlines()[-1]


def test_a_port_that_is_taken_is_known_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert ray_job.main(["serve", "/no/model", "--port", port]) == 1
    assert_error_line(capsys.readouterr().err, f"--host 127.0.0.1 --port {port}", "in use")


@pytest.mark.parametrize(
    ("host", "token", "is_warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", "0123456789abcdef", False), ("127.0.0.1", "", False)],
)
def test_a_server_that_is_open_to_others_without_a_token_is_warned_of(
    host: str,
    token: str,
    is_warned: bool,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if token:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(ImportError):  # Ray, which comes next
        ray_job.main(["serve", trained.run, "--host", host, "--port", "0"])
    assert ("warning: --host 0.0.0.0" in capsys.readouterr().err) is is_warned
