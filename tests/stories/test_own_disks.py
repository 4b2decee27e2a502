"""Nodes that do not see the same files are refused before work starts; no token stays behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import from_clips
from tests.support.audio import write_clips
from tests.support.preparation import LABELS
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.steps import PROJECT

pytestmark = pytest.mark.slow

CLUSTER = """
import json, subprocess, sys, time
import ray
from ray.cluster_utils import Cluster
import ray_job

own_disk, commands = sys.argv[1], json.loads(sys.argv[2])
head = {"num_cpus": 1, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
start = (
    f"mount -t tmpfs none {own_disk} && exec {sys.executable} -m tests.support.patient_ray start "
    f"--address={cluster.address} --block --num-cpus=1 --object-store-memory=100000000"
)
node = subprocess.Popen(
    ["unshare", "--mount", "sh", "-c", start], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
)
cluster.connect()
while len([node for node in ray.nodes() if node["Alive"]]) < 2:
    assert node.poll() is None, "the second node ended"
    time.sleep(0.1)
ray.shutdown()
for command in commands:
    print(json.dumps([ray_job.main([*command, "--address", cluster.address])]), flush=True)
node.terminate()
node.wait()
cluster.shutdown()
"""


def can_have_own_disks() -> bool:
    try:
        done = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not can_have_own_disks(), reason="no right to unshare and mount here")
def test_paths_that_not_all_nodes_see_are_refused(tmp_path: Path) -> None:
    own, shared = tmp_path / "own", tmp_path / "shared"
    clips = write_clips(own / "audio", 8)
    manifests = []
    for folder in (own, shared):
        folder.mkdir(exist_ok=True)
        manifests.append(str(folder / "m.parquet"))
        write_manifest(manifests[-1], from_clips(clips, LABELS))
    elsewhere = write_clips(shared / "audio", 8)
    seen = str(shared / "seen.parquet")
    write_manifest(seen, from_clips(elsewhere, LABELS))
    for folder in (own, shared):
        make_prepared(str(folder / "data"))
    recipe = str(write_recipe(shared / "tiny.toml", tiny_recipe(train={"epochs": 1})))
    run = ["--out", str(shared / "run")]
    commands = [
        ["prepare", manifests[0], "--out", str(shared / "out")],  # its audio is not shared
        ["prepare", seen, "--out", str(own / "out")],
        ["train", recipe, "--data", str(own / "data"), *run],
        ["train", recipe, "--data", str(shared / "data"), "--out", str(own / "run")],
        ["ensemble", recipe, "--data", str(own / "data"), *run, "--seeds", "1", "2"],
        ["prepare", seen, "--out", str(shared / "out")],
    ]
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(own), json.dumps(commands)],
        cwd=PROJECT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    statuses = [line for line in done.stdout.splitlines() if line in ("[0]", "[1]")]
    assert statuses == ["[1]"] * 5 + ["[0]"], done.stderr
    errors = [line for line in done.stderr.splitlines() if ": error: " in line]
    for error, path in zip(errors, ("audio", "out", "data", "run", "data"), strict=True):
        assert f"{own}/{path}" in error
        assert "1 of 2 nodes" in error
        assert "s3://" in error
    left = [path.name for path in tmp_path.rglob("*") if path.suffix == ".token"]
    assert left == []
    assert not (own / "out").exists() or not any((own / "out").glob("shards/*"))
