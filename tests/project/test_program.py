"""The program's name in what it prints, its version, and recipes by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ray_job
from cluster.upload import PACKAGES
from pipeline import storage
from pipeline.version import VERSION
from recipes import FOLDER, find_recipe, recipe_names
from tests.support.errors import refused
from tests.support.special_files import IN_PLACE

PROJECT = Path(ray_job.__file__).parent
CALLED = pytest.mark.parametrize(
    ("path", "name"), [("/opt/bin/ast-ray", "ast-ray"), ("src/ray_job.py", "ray_job.py")]
)


@CALLED
def test_usage_names_the_program_as_called(
    path: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [path])
    with pytest.raises(SystemExit):
        ray_job.main(["prepare"])
    assert capsys.readouterr().err.startswith(f"usage: {name} prepare ")
    with pytest.raises(SystemExit):
        ray_job.main(["prepare", "--help"])
    assert f"example: {name} prepare s3://" in capsys.readouterr().out


@CALLED
def test_error_names_the_program_as_called(
    path: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [path])
    missing = str(tmp_path / "clips.parquet")
    assert ray_job.main(["prepare", missing, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"{name}: error: {missing}: ")


def test_version_is_that_of_the_running_code(tmp_path: Path) -> None:
    """It holds for an uninstalled copy beside an installed version."""
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, tmp_path / package)
    shutil.copy(PROJECT / "ray_job.py", tmp_path)
    version = tmp_path / "pipeline" / "version.py"
    version.write_text(version.read_text().replace(f'"{VERSION}"', '"9.8.7"'))
    show_in_run = "from trainer.run import run_folder; print(run_folder._versions()['ast-ray'])"
    for command, shown in (
        (["ray_job.py", "--version"], "ast-ray 9.8.7\n"),
        (["-c", show_in_run], "9.8.7\n"),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout == shown


@pytest.mark.parametrize("given", ["esc50", "recipes/esc50.toml"])
def test_recipe_is_found_by_name_from_any_folder(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A data set may have the same name.
    (tmp_path / "esc50").mkdir()
    (tmp_path / "esc50" / "card.json").touch()
    assert find_recipe(given) == str(FOLDER / "esc50.toml")


def test_file_wins_over_a_recipe_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    own = tmp_path / "recipes" / "esc50.toml"
    own.touch()
    assert find_recipe("recipes/esc50.toml") == str(own.resolve())
    assert find_recipe("s3://lab/esc50.toml") == "s3://lab/esc50.toml"


@pytest.mark.parametrize(
    ("marker", "what", "remedy"),
    [
        ("card.json", "a prepared data set", "--data {given}"),
        ("run.json", "a run", "model.weights_file={given}"),
        ("ensemble.json", "an ensemble", "recipe"),
    ],
)
def test_other_folder_in_place_of_a_recipe_is_named(
    tmp_path: Path, marker: str, what: str, remedy: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / marker).touch()
    with refused(folder, what, marker, remedy=remedy.format(given=folder)):
        find_recipe(str(folder))


def test_table_in_place_of_a_recipe_is_named(tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    path.touch()
    with refused(path, "a table", remedy="--data"):
        find_recipe(str(path))


def test_data_set_in_a_bucket_in_place_of_a_recipe_is_named(s3: str) -> None:
    storage.write_bytes(f"{s3}/ds/card.json", b"")
    with refused(f"{s3}/ds", "card.json", remedy=f"--data {s3}/ds"):
        find_recipe(f"{s3}/ds")


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_recipe_that_is_no_file_is_named_as_such(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    IN_PLACE[kind](path)
    with refused(path, "folder" if kind == "folder" else "regular", remedy=".toml"):
        find_recipe(str(path))


@pytest.mark.parametrize(
    "given", ["esc-50", "esc50.toml", "my/esc50.toml", "../recipes/esc50.toml"]
)
def test_unknown_recipe_gets_a_list_of_recipes(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"demo", "esc50", "audioset-full"} <= set(recipe_names())
    with refused(given, "no such recipe", remedy=", ".join(recipe_names())):
        find_recipe(given)
