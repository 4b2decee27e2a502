"""The direction of imports: who may import Ray, and which package may know which."""

import ast
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipeline", "trainer", "cluster")

MAY_IMPORT_RAY = {
    "pipeline.dataset.prepare",
    "pipeline.on_ray",
    "pipeline.dataset.verify",
    "trainer.on_ray.actors",
    "trainer.on_ray.progress",
    "trainer.on_ray.train",
    "trainer.on_ray.tune",
    "trainer.on_ray.workers",
    "ray_job",
}
MAY_IMPORT = {
    "pipeline": {"pipeline"},
    "trainer": {"pipeline", "trainer"},
    "cluster": {"pipeline.errors", "pipeline.storage", "cluster"},
    "ray_job": {"pipeline", "trainer", "cluster"},
}


@cache
def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    named = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in paths
    }
    return {**named, "ray_job": ROOT / "ray_job.py"}


def imports(name: str) -> set[str]:
    """Dotted names of what a module imports, also within functions and for type checkers."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            module = node.module or ""
            parts = {f"{module}.{alias.name}" for alias in node.names}
            found |= {part if part in modules() else module for part in parts}
    return found


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def project_imports(name: str) -> set[str]:
    """Modules of the project that a module imports."""
    return imports(name) & modules().keys()


def test_the_project_is_seen() -> None:
    assert {
        "pipeline",
        "pipeline.manifest.layouts.esc50",
        "trainer.training.loop",
        "cluster.session",
    } <= set(modules())
    assert "ray.data" in imports("pipeline.on_ray")
    assert {"trainer.on_ray.train", "pipeline.errors"} <= project_imports("ray_job")


def test_only_named_modules_import_ray() -> None:
    importing = {name for name in modules() if any(within(n, {"ray"}) for n in imports(name))}
    assert {name for name in importing if not within(name, {"cluster"})} <= MAY_IMPORT_RAY


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_in_one_direction(package: str) -> None:
    for name in modules():
        if within(name, {package}):
            wrong = {n for n in project_imports(name) if not within(n, MAY_IMPORT[package])}
            assert not wrong, f"{name} imports {wrong}"


def test_no_two_modules_import_each_other_in_a_ring() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(project_imports(name)):
                visit(other, (*path, name))
            done.add(name)

    for name in sorted(modules()):
        visit(name, ())
    assert done == set(modules())


def test_modules_without_ray_do_not_load_it() -> None:
    free = sorted(
        name
        for name in modules()
        if name not in MAY_IMPORT_RAY and not within(name, {"cluster"}) and "__main__" not in name
    )
    program = (
        f"import importlib, sys\nfor name in {free}: importlib.import_module(name)\n"
        "print(sorted(n for n in sys.modules if n == 'ray' or n.startswith('ray.')))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"pipeline.shards.build", "trainer.training.loop"} <= set(free)
    assert done.stdout.strip() == "[]"
