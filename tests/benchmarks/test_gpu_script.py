"""`benchmarks/gpu.sh`: it runs on the CPU of a bare machine, and its figures are right."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import device_clock
import figures
import learning
import pytest
import torch
import train_sides
from figures import Figure

from trainer.model.settings import ModelSettings

PROJECT = Path(__file__).resolve().parents[2]

BARE = """
import socket, sys

MISSING = {"ray", "webdataset", "plotly", "moto", "playwright", "boto3", "mypy"}


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"{name}: a bare machine does not have it", name=name)


class Closed(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            raise OSError(f"{address}: a bare machine has no network")
        return super().connect(address)


sys.meta_path.insert(0, Refuse())
socket.socket = Closed
"""
"""For `sitecustomize`: a machine without Ray, without a network and without much else."""

FAKE = """#!/bin/sh
case "$*" in
*figures.py*) exec {python} "$@" ;;
*is_available*) echo 0 ;;
*machine.py*) exit 3 ;;
*pytest*) sleep 60 ;;
esac
"""
"""An interpreter with which one part fails and one takes too long."""


def run_script(out: Path, *parts: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "benchmarks/gpu.sh", *parts],
        cwd=PROJECT,
        env={**os.environ, "OUT": str(out), "CUDA_VISIBLE_DEVICES": "", **variables},
        capture_output=True,
        text=True,
    )


def values(out: Path) -> dict[tuple[str, str], Any]:
    document = json.loads((out / "figures.json").read_text())
    return {(entry["part"], entry["name"]): entry["value"] for entry in document}


@pytest.mark.slow
@pytest.mark.timeout(4700)
def test_dry_run_works_without_ray_network_and_gpu(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    done = run_script(
        tmp_path / "out",
        PYTHON=sys.executable,
        PYTHONPATH=f"{tmp_path}:.",
        LIMIT_S="4600",
        HF_HUB_OFFLINE="1",
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    measured = values(tmp_path / "out")
    parts = {"machine", "tests", "steps", "loop", "variants", "fbank", "evaluation", "learning"}
    for part in (*parts, "extras"):
        assert measured[part, "status"].startswith("done in "), part
    assert not [value for value in measured.values() if str(value).startswith("failed")]
    assert "not measured: no time left" not in measured.values()
    for name, unit in (
        (("machine", "matrix product"), "TFLOP/s"),
        (("train_throughput, batches of 2", "ours / transformers, clips/s"), ""),
        (("train_throughput, batches of 3", "ours / authors, clips/s"), ""),
        (("train_throughput, variants, batches of 2", "ours, CUDA graphs"), "clips/s"),
        (("train_throughput, extras, batches of 2", "ours, FP8"), "clips/s"),
        (("train_loop, fbank", "loop / bare step"), ""),
        (("train_loop, audio", "share of the time that the device was idle"), ""),
        (("fbank", "torchaudio / ours, 1 CPU thread"), ""),
        (("evaluation, audio", "evaluate"), "clips/s"),
    ):
        assert measured[name] > 0, name
        assert f"{name[1]} " in done.stdout
        assert unit in done.stdout
    # The evaluation's graph counts as a recompile.
    assert measured["learning", "recompiles in the first epoch"] > 0
    assert measured["learning", "recompiles after the first epoch"] == 0
    assert measured["learning", "graph breaks"] == 0
    assert (
        measured["learning", "loss of the last epoch"]
        < measured["learning", "loss of the first epoch"]
    )


def test_failed_or_slow_parts_do_not_stop_the_others(
    tmp_path: Path,
) -> None:
    fake = tmp_path / "python"
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(0o755)
    done = run_script(
        tmp_path, "machine", "tests", "fbank", "learning", PYTHON=str(fake), LIMIT_S="94"
    )
    assert done.returncode == 1
    assert "failed: machine" in done.stderr
    status = {part: value for (part, name), value in values(tmp_path).items() if name == "status"}
    assert status["machine"].startswith("failed with 3 ")
    assert status["tests"] == "stopped at its limit of 18 s"
    assert status["fbank"].startswith("done in ")
    assert status["learning"].startswith("done in ")


def test_no_part_starts_after_the_time_limit(tmp_path: Path) -> None:
    run_script(tmp_path, "fbank", PYTHON=sys.executable, LIMIT_S="0")
    assert values(tmp_path) == {("fbank", "status"): "not run: no time left"}


def test_table_names_parts_units_and_aims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.jsonl"
    monkeypatch.setenv("FIGURES", str(file))
    figures.record("steps", "ours", 1234.56, "clips/s")
    figures.record("steps", "ratio", 1.25, aim=1.5)
    figures.record("loop", "share", 0.96, aim=0.95)
    figures.record("loop", "other", "out of memory", aim=0.95)
    read = figures.read(file)
    assert read[1] == Figure(part="steps", name="ratio", value=1.25, aim=1.5)
    lines = [" ".join(line.split()) for line in figures.table(read).splitlines()]
    assert lines == [
        "steps",
        "ours 1,235 clips/s",
        "ratio 1.250 (aim: 1.500, NOT REACHED)",
        "",
        "loop",
        "share 0.9600 (aim: 0.9500, reached)",
        "other out of memory (aim: 0.9500, not measured)",
    ]


def test_nothing_is_written_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIGURES", raising=False)
    monkeypatch.chdir(tmp_path)
    figures.record("part", "name", 1.0)
    assert list(tmp_path.iterdir()) == []


def test_busy_time_counts_overlapping_kernels_once() -> None:
    assert device_clock.covered([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0), (5.2, 5.4)]) == 4.0
    assert device_clock.covered([]) == 0.0


def test_trace_counts_kernels_and_waits_of_its_own_thread(
    tmp_path: Path,
) -> None:
    def event(name: str, cat: str, ts: float, dur: float, tid: int = 1) -> dict[str, Any]:
        return {"name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid}

    wait = "cudaStreamSynchronize"
    events = [
        event(device_clock.MARK, "user_annotation", 100, 1000),
        event("gemm", "kernel", 200, 100, tid=7),
        event("gemm", "kernel", 250, 150, tid=8),
        event("copy", "gpu_memcpy", 600, 100, tid=7),
        event("aten::mm", "cpu_op", 150, 10),
        event(wait, "cuda_runtime", 300, 10),
        event(wait, "cuda_runtime", 50, 10),
        event(wait, "cuda_runtime", 1200, 10),
        event(wait, "cuda_runtime", 300, 10, tid=2),
        {"name": "no duration", "cat": "kernel", "ts": 0, "tid": 1},
    ]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps({"traceEvents": events}))
    trace = device_clock.read_trace(path, "cuda")
    assert trace.span_s == pytest.approx(500e-6)
    assert trace.busy_s == pytest.approx(300e-6)
    assert trace.idle_share == pytest.approx(0.4)
    assert trace.kernel_s == pytest.approx({"gemm": 250e-6, "copy": 100e-6})
    assert trace.num_synchronisations == 1
    assert device_clock.read_trace(path, "cpu").kernel_s == pytest.approx({"aten::mm": 10e-6})


def test_recording_counts_what_is_computed() -> None:
    recording = device_clock.Recording(torch.device("cpu"))
    recording.start()
    torch.ones(64, 64) @ torch.ones(64, 64)
    trace = recording.stop()
    assert "aten::mm" in trace.kernel_s
    assert 0 <= trace.idle_share < 1


def test_unfolded_patches_equal_the_convolution() -> None:
    torch.manual_seed(0)
    projection = torch.nn.Conv2d(1, 24, kernel_size=(16, 12), stride=(10, 7))
    x = torch.randn(3, 1, 128, 100)
    torch.testing.assert_close(
        train_sides.UnfoldedPatches(projection)(x), projection(x), atol=1e-5, rtol=1e-5
    )


def test_every_side_but_the_authors_float16_has_a_finite_step() -> None:
    settings = ModelSettings(
        backbone="deit_tiny_distilled_patch16_224.fb_in1k", pretrained=False, depth=1, num_frames=64
    )
    task = train_sides.Task(
        settings=settings,
        batch=train_sides.random_batch(2, 64, torch.device("cpu")),
        precision="float32",
    )
    for side in (train_sides.not_compiled(task), train_sides.authors(task)):
        assert side.flops > 0
        side.step()


def test_graph_breaks_and_recompilations_are_counted() -> None:
    compiler = learning.watch_compiler()
    try:

        @torch.compile(backend="eager", dynamic=False)
        def breaks(x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return x + 1

        @torch.compile(backend="eager", dynamic=False)
        def whole(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        whole(torch.ones(2))
        assert (compiler.graph_breaks, compiler.early_recompiles) == ([], [])
        breaks(torch.ones(2))
        assert len(compiler.graph_breaks) == 1
        whole(torch.ones(3))
        assert len(compiler.early_recompiles) == 1
        compiler.epoch = 2
        whole(torch.ones(4))
        assert len(compiler.late_recompiles) == 1
    finally:
        torch._logging.set_logs()  # type: ignore[attr-defined]
