"""The documentation says what the code does."""

import io
import json
import re
import runpy
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import get_type_hints

import pytest

from pipeline.manifest.layouts.segments import iter_segments
from ray_job import make_parser
from trainer.recipe.parse import load_recipe
from trainer.recipe.recipe import SECTIONS
from trainer.studies.search.space import parse_space

PROJECT = Path(__file__).resolve().parents[2]


def test_list_of_settings_matches_the_code() -> None:
    page = runpy.run_path(str(PROJECT / "docs" / "list_settings.py"))["make_page"]()
    assert (PROJECT / "docs" / "settings.md").read_text() == page


def test_readme_names_every_folder() -> None:
    """It names them in a tree, indented below their package."""
    tree = (PROJECT / "README.md").read_text().split("## The folders")[1]
    named, package = set(), ""
    for indent, name in re.findall(r"^    ( *)([a-z_0-9]+(?:/|\.py)) ", tree, re.MULTILINE):
        package = "" if not indent else package
        named.add(package + name)
        package = package or name
    present = {
        f"{path.relative_to(PROJECT)}/"
        for package in ("pipeline", "trainer")
        for path in (PROJECT / package).iterdir()
        if (path / "__init__.py").exists()
    }
    files = {
        str(path.relative_to(PROJECT))
        for package in ("pipeline", "trainer")
        for path in (PROJECT / package).glob("[a-z]*.py")
    }
    assert present | files <= named
    assert {name for name in named if not (PROJECT / name).exists()} == set()


def test_links_point_to_files() -> None:
    links = [
        (page, link)
        for page in [
            *PROJECT.glob("*.md"),
            *PROJECT.glob("docs/*.md"),
            *PROJECT.glob("cluster/*.md"),
        ]
        for link in re.findall(r"\]\(([^)#]+)", page.read_text())
        if "://" not in link
    ]
    assert len(links) >= 30
    assert [(page.name, link) for page, link in links if not (page.parent / link).exists()] == []


def test_index_names_every_page() -> None:
    index = (PROJECT / "docs" / "README.md").read_text()
    names = {path.name for path in PROJECT.glob("docs/*.md")} - {"README.md"}
    assert {name for name in names if f"]({name})" not in index} == set()


def pages() -> dict[Path, str]:
    """What has commands for a reader to paste, each command in one line."""
    paths = [PROJECT / "README.md", PROJECT / "cluster" / "README.md"]
    paths += [*PROJECT.glob("docs/*.md"), *PROJECT.glob("recipes/*.toml")]
    return {path: re.sub(r"\s*\\\n\s*#?\s*", " ", path.read_text()) for path in paths}


def test_every_command_in_the_readme_and_recipes_parses() -> None:
    steps = (
        "download|manifest|prepare|verify|train|evaluate|ensemble|cross-validate|search|report|import|"
        "export|serve"
    )
    commands = []
    for text in pages().values():
        commands += re.findall(rf"(?:ray_job\.py|ast-ray) ((?:{steps}) .*)", text)
    assert {command.split()[0] for command in commands} == set(steps.split("|"))
    for command in commands:
        make_parser().parse_args(command.strip("`").split())


def test_every_command_to_submit_parses() -> None:
    commands = []
    for text in pages().values():
        commands += re.findall(r"ast-ray (submit .*)", text)
    assert len(commands) >= 5
    for command in commands:
        given = make_parser().parse_args(shlex.split(command.split(" | ")[0].split(" > ")[0]))
        make_parser().parse_args(given.step[1:])


def test_every_override_in_the_readme_and_recipes_is_accepted() -> None:
    """They are applied together to the recipe that the line names or that the file is."""
    # After --set any text counts, elsewhere only text that starts like a setting.
    value = r"(?:\[.*?\]|[^\s`\",;)]*)"
    setting = rf'(?:--set "?|\b(?=(?:{"|".join(SECTIONS)})\.))([a-z_]+\.[a-z0-9_]+={value})'
    accepted = []
    for path, text in pages().items():
        for line in text.splitlines() if path.name != "settings.md" else []:
            named = re.findall(r"recipes/[a-z0-9-]+\.toml", line)
            recipe = path if path.suffix == ".toml" else PROJECT / named[0] if named else ""
            spaces = re.findall(r"--space ([a-z_.]+=[^\s`]+)", line)
            parse_space(spaces, load_recipe(str(recipe)))
            accepted += spaces
            for part in re.sub(r"--space \S+", "", line).split("--variant"):
                overrides = re.findall(setting, part)
                load_recipe(str(recipe), overrides)
                accepted += overrides
    assert len(accepted) >= 30


def test_enhanced_labels_replace_those_of_the_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the lines of Python in docs/audioset.md."""
    monkeypatch.chdir(tmp_path)
    ids = ["--PJHxphWEs", "Y1234567890"]
    lines = [f'{name}, 30.000, 40.000, "/m/a,/m/b"' for name in ids]
    comments = ["# Segments csv created Sun Mar  5", "# YTID, start_seconds, end_seconds, labels"]
    Path("balanced_train_segments.csv").write_text("\n".join([*comments, *lines, ""]))
    clip = {"wav": f"/data/audio/{ids[1]}.flac", "labels": "/m/b,/m/c"}
    enhanced = Path("balanced_train_data_type1_2_mean.json")
    enhanced.write_text(json.dumps({"data": [clip]}))
    page = (PROJECT / "docs" / "audioset.md").read_text()
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], {})
    (table,) = iter_segments(["balanced=enhanced_segments.csv"], ["/m/a", "/m/b", "/m/c"])
    assert table["id"].to_pylist() == ids
    assert table["start_s"].to_pylist() == [30.0, 30.0]
    assert table["classes"].to_pylist() == [[0, 1], [1, 2]]


def test_backbones_are_named_with_the_tag_of_their_weights() -> None:
    untagged = r"\b(?:deit|vit)_\w+_(?:224|384)(?![\w.])"
    recipes = [*PROJECT.glob("recipes/*"), PROJECT / "trainer" / "model" / "settings.py"]
    found = {
        path.name: re.findall(untagged, path.read_text()) for path in recipes if path.is_file()
    }
    assert not any(found.values()), found
    table = (PROJECT / "docs" / "reproduce.md").read_text().split("| ablation |")[1]
    assert "vit_base_patch16_384.orig_in21k_ft_in1k" in table
    assert re.findall(untagged, table) == []


def test_page_on_the_paper_names_what_exists() -> None:
    """Each name in backquotes is a setting, a file, a test in a file, or a command."""
    settings = {f"{name}.{key}" for name, kind in SECTIONS.items() for key in get_type_hints(kind)}
    names = re.findall(r"`([^`]+)`", (PROJECT / "docs" / "paper.md").read_text())
    kinds = {"setting": 0, "file": 0, "test": 0, "command": 0}
    for name in names:
        path, _, test = name.partition("::")
        if name in settings:
            kinds["setting"] += 1
        elif " " in name:
            step, option, *_ = name.split()
            assert option in help_of(step), name
            kinds["command"] += 1
        else:
            assert "/" in path, f"no setting {name}"
            assert (PROJECT / path).is_file(), name
            if test:
                assert f"\ndef {test}(" in (PROJECT / path).read_text(), name
            kinds["test" if test else "file"] += 1
    assert min(kinds.values()) >= 2, kinds


def help_of(step: str) -> str:
    """The help of a step."""
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        make_parser().parse_args([step, "--help"])
    return shown.getvalue()
