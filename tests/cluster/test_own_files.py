"""`submit --working-dir` and `--pip`: which files of a folder a job gets, and which packages."""

from pathlib import Path
from typing import Any

import pytest

import ray_job
from cluster import own_files
from cluster.own_files import find_own_files
from cluster.packages import NO_PACKAGES, parse_packages
from cluster.upload import PACKAGES, PROGRAM, job_folder
from tests.support.errors import assert_error_line, assert_names, refused

PROJECT = Path(ray_job.__file__).resolve().parent


def write(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


KEPT = ("own.toml", "lists/clips.csv", "lists/data.csv", "deep/er/notes.md")
LEFT_OUT = (
    ".env", ".git", ".venv", "a.tar", "best.pth", "build", "data", "lists/.hidden", "lists/runs",
    "pack/__pycache__",
)  # fmt: skip


def test_data_runs_weights_and_hidden_files_stay_here(tmp_path: Path) -> None:
    write(tmp_path, *KEPT, ".env", ".git/config", ".venv/lib/a.py", "a.tar", "best.pth")
    write(tmp_path, "build/a.py", "data/a.wav", "lists/.hidden", "lists/runs/run.json")
    write(tmp_path, "pack/__pycache__/a.pyc")
    (tmp_path / "data" / "unreadable").symlink_to("/nowhere")
    found = find_own_files(tmp_path)
    assert [str(path) for path in found.paths] == sorted(KEPT)
    assert [str(path) for path in found.left_out] == sorted(LEFT_OUT)
    assert found.num_bytes == sum(len(path) for path in KEPT)
    assert_names(found.note(), tmp_path, 4, ".env", ".git", "...")


@pytest.mark.parametrize(
    ("pattern", "left_out"),
    [
        ("*.csv", {"lists/clips.csv", "lists/data.csv"}),
        ("lists", {"lists/clips.csv", "lists/data.csv"}),
        ("lists/", {"lists/clips.csv", "lists/data.csv"}),
        ("er/notes.md", {"deep/er/notes.md"}),
        ("/er/notes.md", set()),
        ("/deep", {"deep/er/notes.md"}),
        ("notes", set()),
    ],
)
def test_patterns_leave_out_names_and_paths(
    pattern: str, left_out: set[str], tmp_path: Path
) -> None:
    write(tmp_path, *KEPT)
    found = find_own_files(tmp_path, [pattern])
    assert set(KEPT) - {str(path) for path in found.paths} == left_out


def test_links_to_folders_and_special_files_are_left_out_and_named(tmp_path: Path) -> None:
    write(tmp_path, "own/a.csv", "elsewhere/b.csv")
    (tmp_path / "own" / "there").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "broken").symlink_to("/nowhere")
    (tmp_path / "own" / "b.csv").symlink_to(tmp_path / "elsewhere" / "b.csv")
    found = find_own_files(tmp_path / "own")
    assert [str(path) for path in found.paths] == ["a.csv", "b.csv"]
    assert [str(path) for path in found.left_out] == ["broken", "there"]


def test_too_large_a_folder_is_refused_with_its_largest_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 8):
        (tmp_path / f"{number}.csv").write_bytes(bytes(number * 1_000_000))
    monkeypatch.setattr(own_files, "MAX_UPLOAD_BYTES", 28_000_000)
    assert find_own_files(tmp_path).num_bytes == 28_000_000
    monkeypatch.setattr(own_files, "MAX_UPLOAD_BYTES", 27_999_999)
    with refused(tmp_path, "28.0 MB", "7.csv (7.0 MB), 6.csv", remedy="--working-dir-exclude"):
        find_own_files(tmp_path)
    assert find_own_files(tmp_path, ["7.csv"]).num_bytes == 21_000_000


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "file")
    for name in ("file", "nowhere"):
        with refused(tmp_path / name, "folder"):
            find_own_files(tmp_path / name)
    with refused("--working-dir-exclude", "'/'"):
        find_own_files(tmp_path, ["/"])


def test_own_files_stand_beside_the_program(tmp_path: Path) -> None:
    root, own = tmp_path / "root", tmp_path / "own"
    write(root, PROGRAM, "pipeline/a.py", "notes.csv")
    write(own, "own.toml", "lists/clips.csv")
    with job_folder(root, None, find_own_files(own)) as folder:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {PROGRAM, "pipeline/a.py", "own.toml", "lists/clips.csv"}
    with job_folder(root, None, find_own_files(root)) as folder:
        assert (folder / "notes.csv").read_text() == "notes.csv"


@pytest.mark.parametrize("name", [PROGRAM, *PACKAGES])
def test_names_of_the_program_are_refused(name: str, tmp_path: Path) -> None:
    root, own = tmp_path / "root", tmp_path / "own"
    write(root, PROGRAM)
    write(own, name if name == PROGRAM else f"{name}/own.py")
    with refused(own / name, remedy=f"/{name}"), job_folder(root, None, find_own_files(own)):
        pass
    with job_folder(root, None, find_own_files(own, [f"/{name}"])):
        pass


def test_recipe_of_the_folder_keeps_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []

    def note(command: list[str], **given: Any) -> int:
        calls.append(given)
        return 0

    monkeypatch.setattr("cluster.jobs.submit", note)
    write(tmp_path, "own/lists/mine.toml", "own/clips.csv")
    (tmp_path / "own/lists/mine.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    step = ["train", "lists/mine.toml", "--data", "s3://lab/data", "--out", "s3://lab/run"]
    command = ["submit", "--working-dir", "own", "--working-dir-exclude", "*.csv", "--", *step]
    assert ray_job.main(command) == 0
    (given,) = calls
    assert given["recipe"] is None
    assert [str(path) for path in given["own"].paths] == ["lists/mine.toml"]


def test_packages_are_requirements_files_and_wheels(tmp_path: Path) -> None:
    write(tmp_path, "tiny-1.0-py3-none-any.whl")
    (tmp_path / "own.txt").write_text(
        "# own\nlibrosa==0.11.0\n\n--find-links /shared/wheels\n  tiny-1.0-py3-none-any.whl\n"
    )
    packages = parse_packages([str(tmp_path / "own.txt"), "librosa==0.11.0", "soxr>=1"])
    ((target, source),) = packages.wheels.items()
    assert source == tmp_path / "tiny-1.0-py3-none-any.whl"
    assert packages.lines == (
        "librosa==0.11.0",
        "--find-links /shared/wheels",
        f"${{RAY_RUNTIME_ENV_CREATE_WORKING_DIR}}/{target}",
        "soxr>=1",
    )
    assert packages.runtime_env() == {"pip": list(packages.lines)}
    assert NO_PACKAGES.runtime_env() == {}
    # Ray keeps an environment by its lines.
    source.write_text("another wheel")
    assert parse_packages([str(source)]).lines[0] not in packages.lines


def test_packages_that_the_nodes_could_not_read_are_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    for line in ("-r more.txt", "--constraint=c.txt", "-e ."):
        own.write_text(f"librosa\n{line}\n")
        with refused(f"{own}, line 2", line):
            parse_packages([str(own)])
    for name in ("missing.txt", "missing.whl"):
        with refused(tmp_path / name, "No such file"):
            parse_packages([str(tmp_path / name)])
    with refused("--pip", "'no such thing'", remedy=".txt"):
        parse_packages(["no such thing"])


@pytest.mark.parametrize(
    ("recipe", "options", "named"),
    [
        ("esc50", ["--working-dir", "."], "--working-dir"),
        ("esc50", ["--pip", "librosa"], "--pip"),
        ("own.toml", [], "own.toml"),
    ],
)
def test_image_takes_neither_files_nor_packages(
    recipe: str,
    options: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").touch()
    step = ["train", recipe, "--data", "s3://lab/data", "--out", "s3://lab/run"]
    assert ray_job.main(["submit", "--image", "mine:1", *options, "--", *step]) == 1
    assert_error_line(capsys.readouterr().err, "--image", "mine:1", named)
