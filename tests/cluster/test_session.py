"""A session imports what its block needs while Ray starts."""

import sys
import time
from pathlib import Path

import pytest

from cluster import local_ray
from cluster.session import connect


@pytest.fixture
def start_waits_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray is up once `slow_module` is imported; `damaged_module` cannot be."""
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(0.1)\nVALUE = 3\n")
    (tmp_path / "damaged_module.py").write_text("raise RuntimeError('damaged')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def start(num_cpus: int | None) -> None:
        deadline_s = time.monotonic() + 10
        while not hasattr(sys.modules.get("slow_module"), "VALUE"):
            assert time.monotonic() < deadline_s
            time.sleep(0.01)

    monkeypatch.setattr(local_ray, "start", start)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("start_waits_for")
def test_modules_are_imported_while_ray_starts() -> None:
    with connect(loading=["damaged_module", "slow_module"]):
        with pytest.raises(RuntimeError, match="damaged"):
            __import__("damaged_module")
        assert "slow_module" in sys.modules
