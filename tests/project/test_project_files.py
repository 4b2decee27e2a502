"""Files around the code that say the same thing as others do."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

from cluster.upload import PACKAGES, PROGRAM
from pipeline.version import VERSION

PROJECT = Path(__file__).resolve().parents[2]


def read_yaml(path: str) -> Any:
    return yaml.safe_load((PROJECT / path).read_text(encoding="utf-8"))


def metadata() -> dict[str, Any]:
    return dict(tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"])


def test_hooks_run_the_commands_of_make_lint() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    (lint,) = re.findall(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    # Hooks get their files from pre-commit, and may put them into their format.
    commands = {re.sub(r"( --check)?( \.)?$", "", line) for line in lint.splitlines()}
    hooks = read_yaml(".pre-commit-config.yaml")["repos"][0]["hooks"]
    assert {f"\t$(BIN)/{hook['entry'].removeprefix('.venv/bin/')}" for hook in hooks} == commands


def test_workflow_checks_every_supported_python() -> None:
    job = read_yaml(".github/workflows/ci.yml")["jobs"]["check"]
    assert "bash .ci/run" in [step.get("run") for step in job["steps"]]
    classified = re.findall(r"Python :: (3\.\d+)", " ".join(metadata()["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == classified
    assert metadata()["requires-python"] == f">={classified[0]}"


def test_issue_forms_have_the_required_keys() -> None:
    forms = [read_yaml(f".github/ISSUE_TEMPLATE/{name}.yml") for name in ("bug", "feature")]
    for form in forms:
        assert isinstance(form["name"], str)
        assert isinstance(form["description"], str)
        assert all(item["type"] == "textarea" for item in form["body"])
        assert all(isinstance(item["attributes"]["label"], str) for item in form["body"])
        ids = [item["id"] for item in form["body"]]
        assert len(ids) == len(set(ids)) > 0


def test_image_gets_the_program_and_nothing_else() -> None:
    dockerfile = (PROJECT / "cluster" / "Dockerfile").read_text(encoding="utf-8")
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8")
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.*)", dockerfile, re.MULTILINE)
        for word in line.split()[:-1]
    }
    files = {PROGRAM, "constraints.txt", "LICENSE", "README.md", "pyproject.toml"}
    assert copied == files | {f"{package}/" for package in PACKAGES}
    assert set(re.findall(r"^!(.*)", ignored, re.MULTILINE)) == copied
    assert "*" in ignored.splitlines()


def test_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["version"] == VERSION
    assert citation["license"] == metadata()["license"] == "MIT"
    assert (PROJECT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
