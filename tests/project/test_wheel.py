"""The wheel: it holds the files that a job is sent, and its metadata."""

import email
import email.message
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from cluster.upload import PACKAGES, program_files
from pipeline.version import VERSION

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow

BUILD = """
import sys
from setuptools.build_meta import build_wheel

print(build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, as setuptools leaves files in its source folder and reuses them."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(PROJECT / package, source / package)
    for name in ("ray_job.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    command = [sys.executable, "-c", BUILD, str(out)]
    subprocess.run(command, cwd=source, check=True, stdout=subprocess.DEVNULL)
    (path,) = out.iterdir()
    return path


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"ast_ray-{VERSION}.dist-info/{name}").decode()


def metadata(wheel: Path) -> email.message.Message:
    return email.message_from_string(read(wheel, "METADATA"))


def test_wheel_holds_only_the_program_and_its_recipes(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    typed = {f"{package}/py.typed" for package in ("cluster", "pipeline", "trainer")}
    assert files == {*map(str, program_files(PROJECT)), *typed}
    assert {"recipes/esc50.toml", "pipeline/pages/style.css"} <= files
    assert "trainer/checkpoints/audioset_classes.csv" in files


def test_metadata_has_licence_and_command(wheel: Path) -> None:
    assert wheel.name == f"ast_ray-{VERSION}-py3-none-any.whl"
    fields = metadata(wheel)
    assert (fields["Name"], fields["Version"]) == ("ast-ray", VERSION)
    assert (fields["License-Expression"], fields["License-File"]) == ("MIT", "LICENSE")
    assert read(wheel, "licenses/LICENSE") == (PROJECT / "LICENSE").read_text(encoding="utf-8")
    assert fields["Requires-Python"] == ">=3.11"
    assert fields.get_all("Project-URL") is None
    points = ConfigParser()
    points.read_string(read(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {"ast-ray": "ray_job:main"}


def test_recipes_are_found_where_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    program = "import recipes; print(recipes.find_recipe('recipes/demo.toml'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=elsewhere,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{(installed / 'recipes' / 'demo.toml').resolve()}\n"
