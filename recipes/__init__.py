"""The recipes that come with the program, in the checkout and in the wheel.

In: the recipe that a user named. Out: the path of its file.
"""

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage import absolute, held_kind, is_remote

FOLDER = Path(__file__).resolve().parent


def recipe_names() -> list[str]:
    """Names of the recipes in this folder: `esc50` is `esc50.toml`."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _refuse_other_kinds(given: str, path: str) -> None:
    """Refuse a data set, a manifest or a run in place of a recipe."""
    kind, remedy = held_kind(path), "name a recipe first, such as esc50"
    if path.endswith(".parquet"):
        kind, remedy = "a table", f"{remedy}, and a prepared data set by --data"
    elif "data set" in kind:
        remedy = f"{remedy}, then --data {given}"
    elif "run" in kind:
        remedy = f"{remedy}; to start from the run's weights, set model.weights_file={given}"
    if kind:
        raise UserError(given, f"{kind}, not a recipe", remedy)


def find_recipe(given: str) -> str:
    """The absolute path of a recipe.

    Args:
        given: path of a file, local or in a bucket; or the name of a recipe in this folder, such as
            `esc50` or `recipes/esc50.toml`. A local file takes precedence over a name.

    Raises:
        UserError: neither a file nor a name, or a folder, pipe or socket; a data set or a run, as
            where arguments are swapped.
    """
    path = absolute(given)
    if not path.endswith(".toml") and (is_remote(path) or Path(path).is_file()):
        _refuse_other_kinds(given, path)
    if is_remote(path) or Path(path).is_file():
        return path
    named = re.fullmatch(r"recipes/(.+)\.toml|([^/]+)", given)
    name = named and (named[1] or named[2])
    if name not in recipe_names():
        _refuse_other_kinds(given, path)
        place = Path(path)
        what = "a folder, not a recipe" if place.is_dir() else "not a regular file"
        raise UserError(
            given,
            what if place.exists() else "no such recipe",
            f"give the path of a .toml file or one of these names: {', '.join(recipe_names())}",
        )
    return str(FOLDER / f"{name}.toml")
