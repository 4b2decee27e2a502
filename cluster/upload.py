"""Copy the program into a temporary folder, which Ray uploads for a job.

In: the folder that holds `ray_job.py` (a checkout, or the site-packages of an installed wheel) and
a recipe given by path. Steps: list the program's files; copy them and the recipe. Out: a temporary
folder in which `python ray_job.py STEP` runs on any node that has the packages of pyproject.toml.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

PROGRAM = "ray_job.py"
PACKAGES = ("pipeline", "trainer", "cluster", "recipes")
SUFFIXES = (".py", ".jinja", ".css", ".csv", ".js", ".toml")
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
def job_folder(root: Path, recipe: Path | None = None) -> Iterator[Path]:
    """A temporary folder with the program, and with a recipe at its `path_in_job`.

    Raises:
        UserError: `root` does not hold the program, or a file cannot be copied.
    """
    files = {path: root / path for path in program_files(root)}
    if recipe is not None:
        files[path_in_job(recipe, root)] = recipe
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
