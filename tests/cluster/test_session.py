"""A session imports what its block needs while Ray starts, and its workers have their share."""

import os
import sys
import time
from pathlib import Path

import pytest
import ray

from cluster import local_ray
from cluster.session import connect


@pytest.fixture
def start_waits_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Ray is up once `slow_module` is imported; `damaged_module` cannot be."""
    (tmp_path / "slow_module.py").write_text("import time; time.sleep(0.1)\nVALUE = 3\n")
    (tmp_path / "damaged_module.py").write_text("raise RuntimeError('damaged')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_module", raising=False)

    def start(num_cpus: int | None) -> None:
        deadline_s = time.monotonic() + 60
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


@pytest.mark.usefixtures("start_waits_for")
def test_block_does_not_wait_for_modules_that_it_does_not_need_yet(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (tmp_path / "late_module.py").write_text(
        "import time\nfrom pathlib import Path\ndeadline_s = time.monotonic() + 60\n"
        f"while not Path({str(begun)!r}).exists():\n"
        "    assert time.monotonic() < deadline_s\n    time.sleep(0.01)\n"
    )
    with connect(loading=["slow_module", "late_module"]):
        begun.touch()
        __import__("late_module")


@pytest.mark.usefixtures("session")
def test_workers_do_not_give_way_to_other_programs() -> None:
    niceness = ray.remote(lambda: os.nice(0))
    assert ray.get(niceness.remote()) == os.nice(0)
