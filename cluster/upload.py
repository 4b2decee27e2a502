"""Copy the program into a temporary folder, which Ray uploads for a job.

In: the folder that holds `ray_job.py` (a checkout, or the site-packages of an installed wheel), and
what the user adds: a recipe given by path, files of a folder, wheels. Steps: list the program's
files; copy them and the others. Out: a temporary folder in which `python ray_job.py STEP` runs on
any node that has the packages of pyproject.toml.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.own_files import OwnFiles, check_size
from cluster.packages import NO_PACKAGES, Packages
from pipeline.errors import UserError

PROGRAM = "ray_job.py"
PACKAGES = ("pipeline", "trainer", "cluster", "recipes")
SUFFIXES = (".py", ".jinja", ".css", ".csv", ".html", ".js", ".toml")
"""Of the program's files; others in its packages are not uploaded."""
RECIPE_FOLDER = "recipe"
"""Folder, in a job, of a recipe that does not come with the program."""


def program_files(root: Path) -> list[Path]:
    """The files of the program in `root`, relative to it, sorted.

    Raises:
        UserError: `root` does not hold the program.
    """
    if not (root / PROGRAM).is_file():
        raise UserError(str(root), f"it has no {PROGRAM}", "give the project's folder")
    candidates = (path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*"))
    files = {
        path
        for path in candidates
        if path.suffix in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and (root / path).is_file()
    }
    return sorted({Path(PROGRAM), *files})


def path_in_job(recipe: Path, root: Path) -> Path:
    """Path of a local recipe in the job's working folder."""
    is_built_in = recipe.resolve().parent == (root / "recipes").resolve()
    return Path("recipes" if is_built_in else RECIPE_FOLDER) / recipe.name


@contextmanager
def job_folder(
    root: Path,
    recipe: Path | None = None,
    own: OwnFiles | None = None,
    packages: Packages = NO_PACKAGES,
) -> Iterator[Path]:
    """A temporary folder with the program, a recipe at its `path_in_job`, own files and wheels.

    Raises:
        UserError: `root` does not hold the program, own files have its names, all is too large, or
            a file cannot be copied.
    """
    files = {path: root / path for path in program_files(root)}
    if recipe is not None:
        files[path_in_job(recipe, root)] = recipe
    added = dict(packages.wheels)
    if own is not None:
        added |= _beside_the_program(own, root, files)
    check_size("--pip and --working-dir", _sizes(added))
    files |= added
    with tempfile.TemporaryDirectory(prefix="ast-ray-job-") as name:
        for path, source in files.items():
            target = Path(name) / path
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(str(source), f"cannot be copied for the job ({reason})") from error
        yield Path(name)


def _beside_the_program(own: OwnFiles, root: Path, others: dict[Path, Path]) -> dict[Path, Path]:
    """Where the user's files stand in a job; in a checkout, the program is uploaded already."""
    reserved = {PROGRAM, *PACKAGES}
    files = {path: own.folder / path for path in own.paths}
    if own.folder.resolve() == root.resolve():
        files = {path: file for path, file in files.items() if path.parts[0] not in reserved}
    for path, file in files.items():
        is_other = path in others and not file.samefile(others[path])
        if path.parts[0] in reserved or is_other:
            name = path.parts[0]
            raise UserError(
                str(own.folder / name),
                "has the name of a part of the program or of the recipe's folder",
                f"rename it, or leave it out with --working-dir-exclude /{name}",
            )
    return files


def _sizes(files: dict[Path, Path]) -> dict[Path, int]:
    return {path: source.stat().st_size for path, source in files.items() if source.exists()}
