"""What a local Ray opens to others: nothing beyond this machine."""

import time
from pathlib import Path

import pytest

from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import from_clips
from tests.support.audio import write_clips
from tests.support.preparation import LABELS
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.sockets import listening
from tests.support.steps import started

LOOPBACK = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def addresses_while(command: list[str]) -> dict[str, set[str]]:
    """What the step and all its processes listen on until it ends, by the processes' names."""
    seen: dict[str, set[str]] = {}
    with started(command) as step:
        while step.poll() is None:
            for name, addresses in listening(step.pid).items():
                seen.setdefault(name, set()).update(addresses)
            time.sleep(0.1)
        assert step.returncode == 0, step.communicate()
    return seen


def assert_on_loopback(seen: dict[str, set[str]], *processes: str) -> None:
    for process in ("gcs_server", "raylet", "ray::DashboardAgent", *processes):
        found = [addresses for name, addresses in seen.items() if name.startswith(process)]
        assert any(found), f"{process} was not seen to listen: {seen}"
    assert {name: addresses - LOOPBACK for name, addresses in seen.items()} == {
        name: set() for name in seen
    }


@pytest.mark.slow
def test_prepare_listens_on_loopback_alone(tmp_path: Path) -> None:
    manifest = str(tmp_path / "m.parquet")
    write_manifest(manifest, from_clips(write_clips(tmp_path / "audio", 8), LABELS))
    seen = addresses_while(
        ["prepare", manifest, f"--out={tmp_path}/out", "--address=local", "--clips-per-shard=4"]
    )
    assert_on_loopback(seen, "ray::")


def test_train_listens_on_loopback_alone(tmp_path: Path) -> None:
    """Two workers, which have a process group."""
    dataset = make_prepared(f"{tmp_path}/data")
    recipe = write_recipe(tmp_path / "tiny.toml", tiny_recipe(train={"epochs": 60}))
    options = ["--workers=2", "--address=local", "--num-cpus=2", "--no-gpu"]
    seen = addresses_while(
        ["train", str(recipe), f"--data={dataset.path}", f"--out={tmp_path}/run", *options]
    )
    assert_on_loopback(seen, "ray::RayTrainWorker", "ray::TrainController")
