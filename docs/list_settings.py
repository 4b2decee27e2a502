"""Prints docs/settings.md: every setting of a recipe, from the classes that own them.

.venv/bin/python docs/list_settings.py > docs/settings.md
"""

import ast
import inspect
import itertools
import sys
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainer.recipe.recipe import SECTIONS, Recipe

INTRODUCTION = """\
# Settings of a recipe

A recipe is a TOML file with these sections; what it leaves out has the default shown here, and
`--set section.key=value` on the command line goes over both. The page is printed by
`docs/list_settings.py`.
"""


def make_page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION]
    defaults = Recipe(name="defaults").to_json()
    for section, kind in SECTIONS.items():
        parts.append(f"\n## [{section}]\n\n{inspect.getdoc(kind).splitlines()[0]}\n")  # type: ignore[union-attr]
        parts.append("| key | default | |\n|---|---|---|")
        texts = field_texts(kind)
        for key, value in defaults[section].items():
            parts.append(f"| `{key}` | {show(value)} | {texts[key]} |")
    return "\n".join(parts) + "\n"


def field_texts(kind: type) -> dict[str, str]:
    """The docstring of each field of a settings class."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    texts = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            texts[field.target.id] = " ".join(text.value.value.split())  # type: ignore[union-attr,attr-defined]
    return texts


def show(value: Any) -> str:
    """A default as TOML would write it."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


if __name__ == "__main__":
    print(make_page(), end="")
