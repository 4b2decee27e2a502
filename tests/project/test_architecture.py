"""What runs without Ray loads without Ray; which module imports which, `lint-imports` checks."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITH_RAY = {"pipeline.on_ray", "pipeline.dataset.prepare", "pipeline.dataset.verify"}


def modules_without_ray() -> list[str]:
    paths = [path for package in ("pipeline", "trainer") for path in (ROOT / package).rglob("*.py")]
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in paths
    }
    return sorted(
        name
        for name in names - WITH_RAY
        if not name.startswith("trainer.on_ray.") and "__main__" not in name
    )


def test_modules_without_ray_do_not_load_it() -> None:
    free = modules_without_ray()
    assert {"pipeline.shards.build", "trainer.training.loop"} <= set(free)
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
    assert done.stdout.strip() == "[]"
