"""What a job needs of the program, copied into a folder that Ray uploads.

In: the folder that holds `ray_job.py` (a checkout, or the site-packages of an installed wheel) and
a recipe that was given by path. Steps: list the program's own files; copy them and the recipe. Out:
a temporary folder in which `python ray_job.py STEP` runs on any node that has the packages of
pyproject.toml.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

PROGRAM = "ray_job.py"
PACKAGES = ("pipeline", "trainer", "cluster", "recipes")
SUFFIXES = (".py", ".jinja", ".css", ".js", ".toml")
"""Of the files in the packages; whatever else lies there is no part of the program."""
RECIPE_FOLDER = "recipe"
"""Where in a job a recipe stands that is none of the program's own."""


def program_files(root: Path) -> list[Path]:
    """The files of the program below `root`, relative to it, in order.

    Raises:
        UserError: `root` does not hold the program.
    """
    if not (root / PROGRAM).is_file():
        raise UserError(str(root), f"no {PROGRAM} in it", "give the project's folder")
    inside = (path.relative_to(root) for name in PACKAGES for path in (root / name).rglob("*"))
    files = {
        path
        for path in inside
        if path.suffix in SUFFIXES
        and not any(part.startswith(".") for part in path.parts)
        and (root / path).is_file()
    }
    return sorted({Path(PROGRAM), *files})


def path_in_job(recipe: Path, root: Path) -> Path:
    """Where a local recipe file stands in the job's working folder."""
    is_own = recipe.resolve().parent == (root / "recipes").resolve()
    return Path("recipes" if is_own else RECIPE_FOLDER) / recipe.name


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
