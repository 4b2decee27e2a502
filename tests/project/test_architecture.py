"""What loading a module brings along; which module imports which, `lint-imports` checks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WITH_RAY = {
    "pipeline.dataset.compact",
    "pipeline.dataset.prepare",
    "pipeline.dataset.verify",
}


def modules_without_ray() -> list[str]:
    paths = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
    }
    return sorted(
        name
        for name in names - WITH_RAY
        if not name.startswith(("pipeline.on_ray.", "trainer.on_ray.")) and "__main__" not in name
    )


def loaded(modules: list[str], libraries: set[str]) -> list[str]:
    """Which of these libraries a new process has loaded after importing the modules."""
    program = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(' '.join(sorted({libraries} & {{n.partition('.')[0] for n in sys.modules}})))"
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
    return done.stdout.split()


def test_modules_without_ray_do_not_load_it() -> None:
    free = modules_without_ray()
    assert {"pipeline.shards.build", "trainer.training.loop"} <= set(free)
    assert loaded(free, {"ray"}) == []


CODECS = {"av", "miniaudio", "soundfile", "soxr"}
S3_CLIENTS = {"aiohttp", "boto3", "botocore", "obstore", "s3fs"}


def test_training_loads_neither_codecs_nor_s3_clients() -> None:
    assert loaded(["trainer.training.loop"], {*CODECS, *S3_CLIENTS, "torch"}) == ["torch"]


def test_settings_load_no_heavy_library() -> None:
    heavy = {*CODECS, *S3_CLIENTS, "ray", "timm", "torch"}
    settings = [name for name in modules_without_ray() if name.endswith("settings")]
    assert len(settings) >= 8
    assert loaded([*settings, "trainer.recipe.parse"], heavy) == []


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("trainer.report.write", {"ray", "timm", "torch"}),
        ("trainer.run.checks", {"ray", "timm", "torch"}),
        ("trainer.on_ray.board", {"ray", "timm", "torch"}),
        ("trainer.on_ray.train", {"timm", "torch"}),
        ("pipeline.dataset.prepare", {"timm", "torch"}),
    ],
)
def test_what_a_person_waits_for_loads_no_more_than_it_needs(
    module: str, without: set[str]
) -> None:
    assert loaded([module], without) == []
