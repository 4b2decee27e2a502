"""The documentation says what the code does."""

import re
import runpy
from pathlib import Path

from ray_job import make_parser

PROJECT = Path(__file__).resolve().parent.parent


def test_the_list_of_settings_is_that_of_the_code() -> None:
    page = runpy.run_path(str(PROJECT / "docs" / "list_settings.py"))["make_page"]()
    assert (PROJECT / "docs" / "settings.md").read_text() == page


def test_the_readme_names_every_module() -> None:
    tree = (PROJECT / "README.md").read_text().split("## The files")[1]
    named = set(re.findall(r"[a-z0-9_]+\.py", tree))
    modules = {
        path.name
        for folder in ("pipeline", "trainer", "cluster")
        for path in (PROJECT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert modules - named == set()
    assert named - modules - {"ray_job.py"} == set()


def test_every_command_in_the_readme_and_recipes_parses() -> None:
    texts = [PROJECT / "README.md", *PROJECT.glob("docs/*.md"), *PROJECT.glob("recipes/*.toml")]
    commands = []
    for path in texts:
        text = re.sub(r"\s*\\\n\s*#?\s*", " ", path.read_text())
        steps = (
            "manifest|prepare|verify|train|evaluate|ensemble|cross-validate|report|import|export"
        )
        commands += re.findall(rf"ray_job\.py ((?:{steps}).*)", text)
    assert len(commands) >= 8
    for command in commands:
        make_parser().parse_args(command.strip("`").split())
