"""Where the token comes from, and what shows it."""

import os
from pathlib import Path

import pytest

from tests.support.errors import refused
from trainer.serving.settings import TOKEN_VARIABLE
from trainer.serving.token import is_right, read_token

TOKEN = "0123456789abcdef"


def test_a_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert read_token(None) is None
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    assert read_token(None) == TOKEN
    assert TOKEN_VARIABLE not in os.environ
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}-of-a-file\n")
    assert read_token(str(path)) == f"{TOKEN}-of-a-file"


@pytest.mark.parametrize(
    ("content", "words"), [(b"short", ["16", "5"]), (b"", ["0"]), (b"two words, " * 3, []),
                           (b"\xff" * 20, []), ("ä" * 20, [])],
)  # fmt: skip
def test_a_token_that_is_none_is_refused(
    content: bytes | str, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with refused(str(path), *words):
        read_token(str(path))


def test_an_empty_variable_is_not_taken_for_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, "")
    with refused(TOKEN_VARIABLE, "16"):
        read_token(None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with refused(str(tmp_path / "no"), "No such file"):
        read_token(str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"Bearer {TOKEN}", True),
        (f"bearer  {TOKEN} ", True),
        (f"Bearer {TOKEN}x", False),
        (f"Bearer {TOKEN[:-1]}", False),
        (f"Basic {TOKEN}", False),
        (TOKEN, False),
        ("Bearer", False),
        ("Bearer é", False),
        ("", False),
    ],
)
def test_only_the_whole_token_is_right(header: str, expected: bool) -> None:
    assert is_right(TOKEN, header) is expected
