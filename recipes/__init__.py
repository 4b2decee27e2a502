"""The recipes that come with the program, in the checkout and in the wheel.

In: the recipe that a user named. Out: the path of its file.
"""

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage import absolute, is_remote

FOLDER = Path(__file__).resolve().parent


def recipe_names() -> list[str]:
    """Names of the recipes in this folder: `esc50` is `esc50.toml`."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(given: str) -> str:
    """The absolute path of a recipe.

    Args:
        given: path of a file, local or in a bucket; or the name of a recipe in this folder, such as
            `esc50` or `recipes/esc50.toml`. A local file takes precedence over a name.

    Raises:
        UserError: neither a file nor a name, or a folder, pipe or socket.
    """
    path = absolute(given)
    if is_remote(path) or Path(path).is_file():
        return path
    named = re.fullmatch(r"recipes/(.+)\.toml|([^/]+)", given)
    name = named and (named[1] or named[2])
    if name not in recipe_names():
        place = Path(path)
        what = "a folder, not a recipe" if place.is_dir() else "not a regular file"
        raise UserError(
            given,
            what if place.exists() else "no such recipe",
            f"give the path of a .toml file or one of these names: {', '.join(recipe_names())}",
        )
    return str(FOLDER / f"{name}.toml")
