"""What `submit` uploads: the program's own files and a recipe given by path, nothing else."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ray_job
from cluster import jobs
from cluster.upload import job_folder, path_in_job, program_files
from tests.support.errors import assert_error_line, refused

PROJECT = Path(ray_job.__file__).resolve().parent


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


PROGRAM = (
    "ray_job.py", "pipeline/__init__.py", "pipeline/pages/style.css", "pipeline/pages/page.js",
    "trainer/report/page.html.jinja", "cluster/jobs.py", "recipes/__init__.py",
    "recipes/esc50.toml", "trainer/checkpoints/classes.csv",
)  # fmt: skip
OTHERS = (
    ".git/config", ".venv/lib/torch/__init__.py", "torch/__init__.py", "build/lib/ray_job.py",
    "data/clip.wav", "runs/one/run.json", "README.md", "tests/test_jobs.py", "own.toml",
    "pipeline/__pycache__/fbank.cpython-311.pyc", "pipeline/.ipynb_checkpoints/fbank.py",
    "trainer/weights.pth", "recipes/demo.sh", "pipeline.py", "pipeline_of_others/__init__.py",
)  # fmt: skip


def test_only_files_of_the_program_are_uploaded(tmp_path: Path) -> None:
    write(tmp_path, *PROGRAM, *OTHERS)
    (tmp_path / "trainer" / "link").symlink_to(tmp_path / "torch")
    with job_folder(tmp_path) as folder:
        assert files_in(folder) == set(PROGRAM)
        assert (folder / "cluster/jobs.py").read_text() == "cluster/jobs.py"
    assert not folder.exists()


def test_every_module_is_importable_in_a_job_folder() -> None:
    names = [path for path in program_files(PROJECT) if path.suffix == ".py"]
    modules = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in names]
    program = (
        # Ray puts its own folder before this one.
        f"import importlib, sys\nfolder = sys.path[0]\n"
        f"files = [importlib.import_module(name).__file__ for name in {modules}]\n"
        "print({file.startswith(folder) for file in files})"
    )
    with job_folder(PROJECT) as folder:
        (folder / "check.py").write_text(program)
        command = [sys.executable, "-W", "ignore", str(folder / "check.py")]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.stdout == "{True}\n", done.stderr


def test_recipe_given_by_path_keeps_its_name(tmp_path: Path) -> None:
    root, mine = tmp_path / "root", tmp_path / "my" / "esc50.toml"
    write(root, *PROGRAM)
    write(tmp_path, "my/esc50.toml")
    assert path_in_job(root / "recipes" / "esc50.toml", root) == Path("recipes/esc50.toml")
    assert path_in_job(mine, root) == Path("recipe/esc50.toml")
    with job_folder(root, mine) as folder:
        assert files_in(folder) == {*PROGRAM, "recipe/esc50.toml"}
        assert (folder / "recipe/esc50.toml").read_text() == "my/esc50.toml"


def test_missing_files_are_an_explained_error(tmp_path: Path) -> None:
    with refused(tmp_path, "ray_job.py"), job_folder(tmp_path):
        pass
    write(tmp_path, *PROGRAM)
    gone = tmp_path / "gone.toml"
    with refused(gone, "No such file"), job_folder(tmp_path, gone):
        pass


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What `jobs.submit` is called with, from a folder with the recipe `own.toml`."""
    calls: list[dict[str, Any]] = []

    def note(arguments: list[str], **options: Any) -> int:
        calls.append({"arguments": arguments, **options})
        return 0

    monkeypatch.setattr(jobs, "submit", note)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").touch()
    return calls


@pytest.mark.parametrize(
    ("recipe", "uploaded"),
    [
        ("own.toml", "own.toml"),
        (str(PROJECT / "recipes" / "esc50.toml"), str(PROJECT / "recipes" / "esc50.toml")),
        ("esc50", None),
        ("recipes/esc50.toml", None),
        ("s3://lab/own.toml", None),
        ("/only/on/the/cluster.toml", None),
    ],
)
def test_only_local_recipes_given_by_path_are_uploaded(
    recipe: str, uploaded: str | None, submitted: list[dict[str, Any]]
) -> None:
    step = ["train", recipe, "--data", "s3://lab/data", "--out", "s3://lab/run"]
    assert ray_job.main(["submit", "--", *step]) == 0
    (call,) = submitted
    assert (call["arguments"], call["recipe"]) == (step, uploaded)
    assert call["working_dir"] == str(PROJECT)


def test_step_without_a_recipe_uploads_none(submitted: list[dict[str, Any]]) -> None:
    assert ray_job.main(["submit", "--", "verify", "s3://lab/data"]) == 0
    assert submitted[0]["recipe"] is None


def test_unknown_recipe_is_refused_before_submitting(
    submitted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    step = ["train", "owm.toml", "--data", "s3://lab/data", "--out", "s3://lab/run"]
    assert ray_job.main(["submit", "--", *step]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert_error_line(line, "owm.toml", "no such recipe")
    assert submitted == []


@pytest.mark.parametrize("step", ["train", "ensemble", "cross-validate", "search"])
@pytest.mark.parametrize("folder", ["", "lists"])
def test_settings_are_checked_before_submitting(
    step: str,
    folder: str,
    submitted: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also those of a recipe in the folder of the user's files."""
    options = ["--working-dir", folder] if folder else []
    (tmp_path / folder).mkdir(exist_ok=True)
    for where, recipe, setting in (
        ("bad.toml", "[train]\nepoch = 3\n", "train.epochs=3"),
        ("--set train.epoch=3", "", "train.epoch=3"),
    ):
        (tmp_path / folder / "bad.toml").write_text(recipe)
        command = [step, "bad.toml", "--data", "s3://lab/data", "--out", "s3://lab/run"]
        assert ray_job.main(["submit", *options, "--", *command, "--set", setting]) == 1
        assert_error_line(capsys.readouterr().err, where, "train.epochs")
    assert submitted == []


@pytest.mark.parametrize("given", [["--out", "data"], ["--out=data"], ["--out", "./data"]])
def test_output_in_the_folder_of_the_job_is_refused(
    given: list[str], submitted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The results would be lost without a word."""
    assert ray_job.main(["submit", "--", "prepare", "s3://lab/data.parquet", *given]) == 1
    assert_error_line(capsys.readouterr().err, "--out", "data", "absolute")
    assert submitted == []


@pytest.mark.parametrize(
    "given", [["--out", "/data"], ["--out=/data/"], ["--out", "~/d"], ["--out", "s3://lab/d"]]
)
def test_output_elsewhere_is_accepted(given: list[str], submitted: list[dict[str, Any]]) -> None:
    assert ray_job.main(["submit", "--", "prepare", "s3://lab/data.parquet", *given]) == 0
    assert len(submitted) == 1


def test_job_that_submits_is_refused(
    submitted: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ray_job.main(["submit", "--", "submit", "--", "verify", "s3://lab/data"]) == 1
    assert_error_line(capsys.readouterr().err, "submit -- submit", "jobs")
    assert submitted == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "own.toml", "--data", "d"], ["train", "NEW", "--data", "d"]),
        (["import", "a.pth", "--recipe=own.toml"], ["import", "a.pth", "--recipe=NEW"]),
        (["import", "--recipe", "own.toml"], ["import", "--recipe", "NEW"]),
        (["train", "x", "--set", "a.b=own.toml"], ["train", "x", "--set", "a.b=own.toml"]),
    ],
)
def test_recipe_path_is_replaced_in_the_arguments(
    arguments: list[str], expected: list[str]
) -> None:
    assert jobs._replaced(arguments, "own.toml", "NEW") == expected
