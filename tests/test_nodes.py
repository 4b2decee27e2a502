"""Nodes, workers and drivers that die while they prepare: every clip once, and the same bytes.

A `sitecustomize` in the `PYTHONPATH` of such a run makes the decoding of some clips deadly; nothing
in the project knows of it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.decode import Samples, decode_audio
from pipeline.manifest import Clip, from_clips, read_manifest, write_manifest
from pipeline.plan import PrepareSettings
from pipeline.rejects import RejectError
from tests.audio import write_clips
from tests.preparation import LABELS, files
from tests.steps import PROJECT, started
from tests.without_ray import prepare, tars

pytestmark = pytest.mark.slow

SETTINGS = PrepareSettings(clips_per_shard=8)
NUM_SHARDS = 30

SABOTAGE = """
import os, signal, sys, time
from importlib.machinery import PathFinder

DEEDS, NOTE, MAX_DECODE_S = {deeds!r}, {note!r}, {max_decode_s!r}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def hang():
    time.sleep(600)


def once(deed):
    if not os.path.exists(NOTE):
        import ray

        with open(NOTE + ".new", "x") as note:
            note.write(ray.get_runtime_context().get_node_id())
        os.rename(NOTE + ".new", NOTE)
        deed()


def make_deadly(soundfile):
    class SoundFile(soundfile.SoundFile):
        def __init__(self, source, *arguments, **options):
            for path, deed in DEEDS.items():
                with open(path, "rb") as file:
                    if file.read() == source.getvalue():
                        eval(deed)
            super().__init__(source, *arguments, **options)

    soundfile.SoundFile = SoundFile


def make_impatient(build):
    build.MAX_DECODE_S = MAX_DECODE_S


class Finder:
    changes = {{"soundfile": make_deadly, "pipeline.build": make_impatient}}

    def find_spec(self, name, path=None, target=None):
        change = self.changes.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if spec:
            load = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (load(module), change(module))
        return spec


sys.meta_path.insert(0, Finder())
"""

CLUSTER = """
import os, sys, threading, time
from ray.cluster_utils import Cluster
import ray_job

note, *command = sys.argv[1:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

def kill_the_node_in_the_note():
    while not os.path.exists(note):
        time.sleep(0.05)
    with open(note) as file:
        node_id = file.read()
    [node] = [node for node in nodes if node._node_id == node_id]
    cluster.remove_node(node, allow_graceful=False)
    print("killed", flush=True)

threading.Thread(target=kill_the_node_in_the_note, daemon=True).start()
status = ray_job.main([*command, "--address", cluster.address])
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
    """The data set, undisturbed."""
    folder = tmp_path_factory.mktemp("reference")
    prepare(read_manifest(str(manifest)), folder, SETTINGS)
    assert len(tars(folder)) == NUM_SHARDS
    return files(folder)


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where a process leaves the id of its node before it does what it does only once."""
    return tmp_path / "note"


@pytest.fixture
def sabotage(
    note: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., None]]:
    """Says what decoding a file does in processes that are started from now on."""

    def spoil(deeds: dict[str, str], max_decode_s: float = 60.0) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            SABOTAGE.format(deeds=deeds, note=str(note), max_decode_s=max_decode_s)
        )

    # The sockets in it have paths of limited length.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield spoil
    shutil.rmtree(folder, ignore_errors=True)


def prepare_command(manifest: Path, output: Path, *more: str) -> list[str]:
    settings = ["--clips-per-shard", "8", "--max-reject-share", "0.5", "--json-logs"]
    return ["prepare", str(manifest), "--out", str(output), *settings, *more]


def ids(output: Path) -> list[str]:
    return sorted(pq.read_table(output / "index.parquet")["id"].to_pylist())


def finished(output: Path) -> dict[str, int]:
    """When each part file was written, by the shard's name."""
    parts = (output / "_work" / "parts").glob("[!.]*.parquet")
    return {path.stem: path.stat().st_mtime_ns for path in parts}


def test_a_node_that_is_killed_costs_nothing(
    clips: list[Clip],
    manifest: Path,
    reference: dict[str, bytes],
    note: Path,
    sabotage: Callable[..., None],
    tmp_path: Path,
) -> None:
    sabotage({clips[100].uri: "once(hang)"})
    command = prepare_command(manifest, tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", CLUSTER, str(note), *command],
        cwd=PROJECT,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "killed" in done.stdout.splitlines()
    assert ids(tmp_path / "out") == sorted(clip.id for clip in clips)
    assert without_pages(tmp_path / "out") == reference


def test_workers_that_are_killed_or_hang_cost_at_most_their_clip(
    clips: list[Clip],
    manifest: Path,
    note: Path,
    sabotage: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadly = {clips[31].uri: "die()", clips[77].uri: "hang()"}
    sabotage({**deadly, clips[150].uri: "once(die)"}, max_decode_s=3.0)
    with started(prepare_command(manifest, tmp_path / "out", "--address", "local")) as step:
        _, told = step.communicate(timeout=280)
    assert step.returncode == 0, told
    assert note.exists()
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert {row["id"]: f"{row['stage']}: {row['reason']}" for row in rejects} == {
        clips[31].id: "decode: the decoder crashed (SIGKILL)",
        clips[77].id: "decode: decoding took longer than 3 s",
    }
    assert ids(tmp_path / "out") == sorted(
        {clip.id for clip in clips} - {row["id"] for row in rejects}
    )
    reasons = {Path(row["uri"]).read_bytes(): row["reason"] for row in rejects}

    def decode(data: bytes, *arguments: Any, **options: Any) -> Samples:
        if data in reasons:
            raise RejectError("decode", reasons[data])
        return decode_audio(data, *arguments, **options)

    monkeypatch.setattr("pipeline.build.decode_audio", decode)
    prepare(read_manifest(str(manifest)), tmp_path / "undisturbed", SETTINGS)
    assert without_pages(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_a_driver_that_is_killed_costs_the_shards_in_flight(
    clips: list[Clip],
    manifest: Path,
    reference: dict[str, bytes],
    note: Path,
    sabotage: Callable[..., None],
    tmp_path: Path,
) -> None:
    sabotage({clips[200].uri: "once(hang)"})
    output = tmp_path / "out"
    command = prepare_command(manifest, output, "--address", "local", "--num-cpus", "2")
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
        printed, told = step.communicate(timeout=200)
    assert step.returncode == 0, told
    assert json.loads(printed.splitlines()[-1])["num_shards_built"] == NUM_SHARDS - len(before)
    assert {name: finished(output)[name] for name in before} == before
    assert without_pages(output) == reference


def without_pages(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(output).items() if not name.endswith(".html")}
