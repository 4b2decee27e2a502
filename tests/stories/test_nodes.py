"""Nodes, workers and drivers that die while they prepare: every clip once, and the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.audio.decode import Decoded, decode_audio
from pipeline.audio.rejects import RejectError
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.manifest import Clip, from_clips
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import write_clips
from tests.support.preparation import LABELS, files
from tests.support.sabotage import sabotaged
from tests.support.steps import PROJECT, started
from tests.support.without_ray import prepare, tars

pytestmark = pytest.mark.slow

SETTINGS = PrepareSettings(clips_per_shard=8)
NUM_SHARDS = 30
MAX_DECODE_S = 12.0
"""Far more than one of these clips takes, on a busy machine too; the hang lasts this long."""

CLUSTER = """
import os, sys, threading, time
from ray.cluster_utils import Cluster
import ray_job

note, *command = sys.argv[1:]
head = {"num_cpus": 0, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

def kill_the_node_in_the_note():
    while not os.path.exists(note):
        time.sleep(0.05)
    with open(note) as file:
        node_id = file.read()
    [node] = [node for node in nodes if node._node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)
    print("killed", flush=True)

killer = threading.Thread(target=kill_the_node_in_the_note, daemon=True)
killer.start()
status = ray_job.main([*command, "--address", cluster.address])
killer.join(60)
cluster.shutdown()
sys.exit(status)
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return write_clips(tmp_path_factory.mktemp("audio"), 240)


@pytest.fixture(scope="module")
def manifest(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "m.parquet"
    write_manifest(str(path), from_clips(clips, LABELS))
    return path


@pytest.fixture(scope="module")
def reference(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The data set, prepared without faults."""
    folder = tmp_path_factory.mktemp("reference")
    prepare(read_manifest(str(manifest)), folder, SETTINGS)
    assert len(tars(folder)) == NUM_SHARDS
    return files(folder)


def prepare_command(manifest: Path, output: Path, *more: str) -> list[str]:
    settings = ["--clips-per-shard", "8", "--max-reject-share", "0.5", "--json-logs"]
    return ["prepare", str(manifest), "--out", str(output), *settings, *more]


def ids(output: Path) -> list[str]:
    return sorted(pq.read_table(output / "index.parquet")["id"].to_pylist())


def finished(output: Path) -> dict[str, int]:
    """When each part file was written, by the shard's name."""
    parts = (output / "_work" / "parts").glob("[!.]*.parquet")
    return {path.stem: path.stat().st_mtime_ns for path in parts}


def test_killed_node_costs_nothing(
    clips: list[Clip],
    manifest: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
) -> None:
    command = prepare_command(manifest, tmp_path / "out")
    with sabotaged(tmp_path, {clips[100].uri: "once(hang)"}) as note:
        done = subprocess.run(
            [sys.executable, "-c", CLUSTER, str(note), *command],
            cwd=PROJECT,
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout.splitlines()
    assert ids(tmp_path / "out") == sorted(clip.id for clip in clips)
    assert without_pages(tmp_path / "out") == reference


def test_killed_or_hanging_workers_cost_at_most_their_clip(
    clips: list[Clip],
    manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deeds = {clips[31].uri: "die()", clips[77].uri: "hang()", clips[150].uri: "once(die)"}
    command = prepare_command(manifest, tmp_path / "out", "--address", "local")
    with sabotaged(tmp_path, deeds, max_decode_s=MAX_DECODE_S) as note, started(command) as step:
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert note.exists()
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {row["id"]: f"{row['stage']}: {row['reason']}" for row in rejects} == {
        clips[31].id: "decode: the decoder crashed (SIGKILL)",
        clips[77].id: "decode: decoding took longer than 12 s",
    }
    assert ids(tmp_path / "out") == sorted(
        {clip.id for clip in clips} - {row["id"] for row in rejects}
    )
    reasons = {Path(row["uri"]).read_bytes(): row["reason"] for row in rejects}

    def decode(data: bytes, *arguments: Any, **options: Any) -> Decoded:
        if data in reasons:
            raise RejectError("decode", reasons[data])
        return decode_audio(data, *arguments, **options)

    monkeypatch.setattr("pipeline.shards.build.decode_audio", decode)
    prepare(read_manifest(str(manifest)), tmp_path / "undisturbed", SETTINGS)
    assert without_pages(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_killed_driver_costs_only_the_shards_in_flight(
    clips: list[Clip],
    manifest: Path,
    reference: dict[str, bytes],
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    command = prepare_command(manifest, output, "--address", "local", "--num-cpus", "2")
    with sabotaged(tmp_path, {clips[200].uri: "once(hang)"}) as note:
        with started(command) as step:
            deadline = time.monotonic() + 200
            while len(finished(output)) < 5 or not note.exists():
                assert step.poll() is None, step.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            os.kill(step.pid, signal.SIGKILL)
            step.communicate(timeout=60)
        before = finished(output)
        assert 5 <= len(before) < NUM_SHARDS
        with started(command) as step:
            stdout, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["num_shards_built"] == NUM_SHARDS - len(before)
    assert {name: finished(output)[name] for name in before} == before
    assert without_pages(output) == reference


def without_pages(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(output).items() if not name.endswith(".html")}
