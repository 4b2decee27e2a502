"""`prepare` on Ray: the same bytes in every run, and one line for each mistake of a user."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data

import ray_job
from cluster.session import connect
from pipeline import storage
from pipeline.dataset.assemble import assemble
from pipeline.dataset.prepare import prepare
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.files import read_manifest, write_manifest
from pipeline.manifest.layouts.read import read_source
from pipeline.manifest.manifest import Manifest, from_clips
from pipeline.manifest.synthetic import SyntheticSettings, write_synthetic
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.plan import make_plan, write_plan
from pipeline.shards.settings import PrepareSettings
from tests.conftest import forget_clients
from tests.support.audio import write_clips
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.preparation import contents
from tests.support.sabotage import sabotaged
from tests.support.steps import started

SETTINGS = PrepareSettings(clips_per_shard=4)
NUM_SHARDS = 13


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """45 clips of several formats and rates in two splits, and one of each broken kind."""
    folder = tmp_path_factory.mktemp("audio")
    write_synthetic(
        folder,
        SyntheticSettings(num_train=35, num_eval=10, min_duration_s=0.5, max_duration_s=0.8),
    )
    return folder


@pytest.fixture(scope="module")
def manifest(audio: Path) -> Manifest:
    clips = read_source(str(audio / "clips.csv"), "csv")
    write_manifest(str(audio / "manifest.parquet"), clips)
    return clips


@pytest.fixture(scope="module")
def reference(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The data set, built shard by shard in this process."""
    folder = tmp_path_factory.mktemp("reference")
    plan = make_plan(manifest, SETTINGS)
    job = BuildJob(output=str(folder), settings=SETTINGS)
    write_plan(plan, job.work, manifest)
    for spec in plan.specs:
        build_shard(spec, job)
    assemble(plan, manifest, job, built=set(), max_reject_share=0.1, elapsed_s=lambda: 1.0)
    files = contents(str(folder))
    assert len(files) == NUM_SHARDS + 3
    return files


def run_prepare(manifest: Manifest, output: str, **changes: Any) -> PrepareSummary | None:
    return prepare(
        manifest, output, SETTINGS, session=connect(), **{"max_reject_share": 0.1, **changes}
    )


def prepare_command(manifest: Path | str, output: Path, *more: str) -> list[str]:
    options = ["--clips-per-shard", "4", "--address", "local", *more]
    return ["prepare", str(manifest), "--out", str(output), *options]


# --- the same bytes ----------------------------------------------------------------------------


@pytest.mark.usefixtures("session")
def test_two_cpus_give_the_reference_and_its_rejects(
    manifest: Manifest, reference: dict[str, bytes], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    summary = run_prepare(manifest, output)
    assert summary is not None
    assert contents(output) == reference
    assert (summary.num_clips, summary.num_rejects) == (45, 5)
    assert summary.rejects_by_reason["fetch: not found"] == 1
    assert (summary.num_shards, summary.num_shards_built) == (NUM_SHARDS, NUM_SHARDS)
    assert summary.num_clips_built == 50
    assert all(seconds > 0 for seconds in summary.stages_s.values())
    assert run_prepare(manifest, output) is None
    (tmp_path / "out" / "card.json").unlink()
    again = run_prepare(manifest, output)
    assert again is not None
    assert again.num_shards_built == 0
    assert contents(output) == reference


def test_one_cpu_gives_the_reference(
    audio: Path, manifest: Manifest, reference: dict[str, bytes], tmp_path: Path
) -> None:
    assert manifest.clips.num_rows == 50
    command = prepare_command(audio / "manifest.parquet", tmp_path / "out", "--num-cpus", "1")
    with started(command) as step:
        stdout, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert contents(str(tmp_path / "out")) == reference
    assert "rejected" in stdout
    assert "1 fetch: not found" in stdout
    assert "clips: 50/50" in stderr


def test_killed_run_resumes_to_the_reference(
    audio: Path,
    manifest: Manifest,
    reference: dict[str, bytes],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    output = tmp_path / "out"
    command = prepare_command(audio / "manifest.parquet", output, "--num-cpus", "2")
    # A task hangs, so the run cannot end before it is killed.
    waves = [uri for uri in manifest.clips["uri"].to_pylist() if uri.endswith(".wav")]
    deeds = {waves[2]: "once(hang)"}
    with sabotaged(tmp_path, deeds) as note, started(command) as step:
        deadline = time.monotonic() + 200
        while len(parts(output)) < 3 or not note.exists():
            assert step.poll() is None, step.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(step.pid, signal.SIGKILL)
        step.communicate(timeout=60)
    assert not (output / "card.json").exists()
    finished = {path.stem for path in parts(output)}
    assert 3 <= len(finished) < NUM_SHARDS
    before = {name: (output / "shards" / f"{name}.tar").stat().st_mtime_ns for name in finished}
    request.getfixturevalue("session")
    summary = run_prepare(manifest, str(output))
    assert summary is not None
    assert summary.num_shards_built == NUM_SHARDS - len(finished)
    assert contents(str(output)) == reference
    for name, mtime_ns in before.items():
        assert (output / "shards" / f"{name}.tar").stat().st_mtime_ns == mtime_ns


def parts(output: Path) -> list[Path]:
    return list((output / "_work" / "parts").glob("[!.]*.parquet"))


@pytest.mark.usefixtures("session")
def test_buckets_give_the_same_as_folders(audio: Path, s3: str, tmp_path: Path) -> None:
    for path in sorted(audio.rglob("*")):
        if path.is_file():
            name = path.relative_to(audio).as_posix()
            storage.write_bytes(f"{s3}/audio/{name}", path.read_bytes())
    manifest = read_source(f"{s3}/audio/clips.csv", "auto")
    local = run_prepare(manifest, str(tmp_path / "out"))
    remote = run_prepare(manifest, f"{s3}/out")
    assert local is not None
    assert remote is not None
    assert contents(f"{s3}/out") == contents(str(tmp_path / "out"))
    assert remote.rejects_by_reason == local.rejects_by_reason
    assert remote.rejects_by_reason["fetch: not found"] == 1
    dataset = open_dataset(f"{s3}/out")
    assert dataset.index.num_rows == 45
    assert dataset.read_fbank(3).shape == (dataset.index["frames"][3].as_py(), 128)
    assert run_prepare(manifest, f"{s3}/out") is None


@pytest.mark.usefixtures("session")
def test_retry_adds_a_file_that_came_late(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "audio", 9)
    late = Path(clips[4].uri)
    late.rename(tmp_path / "aside")
    manifest = from_clips(clips, ["dog", "rain"])
    output = str(tmp_path / "out")
    with refused("", 1, 9, "fetch: not found (1)"):
        run_prepare(manifest, output, max_reject_share=0.0)
    assert not (tmp_path / "out" / "card.json").exists()
    first = run_prepare(manifest, output, max_reject_share=0.5)
    assert first is not None
    assert (first.num_clips, first.num_shards_built) == (8, 0)
    assert run_prepare(manifest, output) is None
    (tmp_path / "aside").rename(late)
    second = run_prepare(manifest, output, retry_rejects=True)
    assert second is not None
    assert (second.num_clips, second.num_shards_built) == (9, 1)
    assert run_prepare(manifest, output, retry_rejects=True) is None
    run_prepare(manifest, str(tmp_path / "at once"))
    assert contents(output) == contents(str(tmp_path / "at once"))


@pytest.mark.usefixtures("session")
def test_shard_larger_than_node_memory_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.dataset.prepare._TASK_MEMORY_PER_CLIP_BYTES", 10**15)
    manifest = from_clips(write_clips(tmp_path / "audio", 2), ["dog", "rain"])
    summary = run_prepare(manifest, str(tmp_path / "out"))
    assert summary is not None
    assert summary.num_clips == 2


@pytest.mark.usefixtures("session")
def test_ray_data_reads_the_shards(reference: dict[str, bytes], tmp_path: Path) -> None:
    names = sorted(name for name in reference if name.endswith(".tar"))
    for name in names:
        storage.write_bytes(f"{tmp_path}/{name}", reference[name])
    storage.write_bytes(f"{tmp_path}/card.json", reference["card.json"])
    storage.write_bytes(f"{tmp_path}/index.parquet", reference["index.parquet"])
    dataset = open_dataset(str(tmp_path))
    rows = ray.data.read_webdataset([f"{tmp_path}/{name}" for name in names]).take_all()
    read = {row["json"]["id"]: row for row in rows}
    assert len(read) == len(rows) == 45
    for position, clip in enumerate(dataset.index.read().to_pylist()):
        row = read[clip["id"]]
        assert row["json"]["labels"] == clip["labels"]
        assert row["json"]["split"] == clip["split"]
        numbers = np.asarray(row["npy"])
        assert numbers.dtype == np.float16
        np.testing.assert_array_equal(numbers, dataset.read_fbank(position))


# --- one line ----------------------------------------------------------------------------------


def error_line(
    command: Sequence[str], capfd: pytest.CaptureFixture[str], *, progress: Sequence[str] = ()
) -> str:
    """The error of a command that must fail: one line, no traceback."""
    capfd.readouterr()
    status = ray_job.main(command)
    captured = capfd.readouterr()
    assert status == 1
    assert captured.out == ""
    *before, line = captured.err.splitlines()
    assert before == list(progress)
    assert line.startswith("ray_job.py: error: ")
    return line.removeprefix("ray_job.py: error: ")


def test_process_ends_with_one_line_and_a_status(tmp_path: Path) -> None:
    with started(prepare_command(tmp_path / "none.parquet", tmp_path / "out")) as step:
        stdout, stderr = step.communicate(timeout=120)
    assert step.returncode == 1
    assert stdout == ""
    [line] = stderr.splitlines()
    assert_error_line(line, f"{tmp_path}/none.parquet", "`manifest`")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ({"id": [], "uri": [], "labels": []}, ["no clip"]),
        ({"id": ["a", "a"], "uri": ["/a", "/b"], "labels": [["x"], []]}, ["1 duplicate id", "a"]),
        ({"id": ["a"], "uri": ["a.wav"], "labels": [["x"]]}, ["uri", "'a.wav'"]),
        ({"id": ["a"], "uri": ["/a"]}, ["column 'labels'"]),
    ],
)
def test_invalid_manifest_is_one_line(
    columns: dict[str, Any], values: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    types = {"labels": pa.list_(pa.string())}
    table = {name: pa.array(v, types.get(name, pa.string())) for name, v in columns.items()}
    path, output = tmp_path / "m.parquet", tmp_path / "out"
    pq.write_table(pa.table(table), path)
    line = error_line(prepare_command(path, output), capfd)
    assert line.startswith(f"{path}: ")
    assert_names(line, *values)
    assert not output.exists()


def test_label_outside_the_vocabulary_is_one_line(
    audio: Path, manifest: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels, output = tmp_path / "labels.txt", tmp_path / "out"
    labels.write_text("\n".join(manifest.labels[1:]), encoding="utf-8")
    command = prepare_command(audio / "manifest.parquet", output, "--labels", str(labels))
    line = error_line(command, capfd)
    assert line.startswith(f"{labels}: ")
    assert_names(line, "vocabulary", 9, repr(manifest.labels[0]))
    assert not output.exists()


@pytest.mark.usefixtures("manifest")
def test_settings_out_of_range_are_one_line(
    audio: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("--max-duration-s", "0"), ("--clips-per-shard", "200000")):
        output = tmp_path / "out"
        line = error_line(prepare_command(audio / "manifest.parquet", output, option, value), capfd)
        assert line.startswith(f"{option}: ")
        assert_names(line, f"got {value}")
        assert not output.exists()


@pytest.mark.usefixtures("manifest")
def test_unwritable_output_is_one_line(
    audio: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    for output in (tmp_path / "file" / "out", Path("/proc/out")):
        line = error_line(prepare_command(audio / "manifest.parquet", output), capfd)
        assert line.startswith(f"{output}/")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.usefixtures("manifest", "s3")
def test_missing_bucket_is_one_line(
    audio: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, output = audio / "manifest.parquet", tmp_path / "out"
    command = ["prepare", str(path), "--out", "s3://no-such-bucket/out"]
    line = error_line(command, capfd)
    assert line.startswith("s3://no-such-bucket: ")
    assert_names(line, "bucket", "endpoint")
    clips = [replace(clip, uri=f"s3://no-such-bucket/{clip.id}") for clip in write_clips(audio, 2)]
    write_manifest(str(tmp_path / "m.parquet"), from_clips(clips, ["dog", "rain"]))
    line = error_line(prepare_command(tmp_path / "m.parquet", output), capfd)
    assert line.startswith("s3://no-such-bucket/train/0: ")
    assert_names(line, "bucket", "endpoint")
    assert not output.exists()
    command = ["manifest", str(audio), "--out", "s3://no-such-bucket/m.parquet"]
    line = error_line(command, capfd)
    assert line.startswith("s3://no-such-bucket/m.parquet: ")
    assert_names(line, "bucket", "endpoint")


@pytest.mark.usefixtures("manifest", "s3")
def test_refused_credentials_are_one_line(
    audio: Path,
    tmp_path: Path,
    strict_s3_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_s3_endpoint)
    forget_clients()
    command = ["prepare", str(audio / "manifest.parquet"), "--out", "s3://bucket/out"]
    line = error_line(command, capfd)
    assert line.startswith("s3://bucket: ")
    assert_names(line, "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID", strict_s3_endpoint)
    line = error_line(prepare_command("s3://bucket/m.parquet", tmp_path / "out"), capfd)
    assert line.startswith("s3://bucket/m.parquet: ")
    assert_names(line, "access refused")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("session")
def test_complete_data_set_is_kept_and_other_settings_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clips = write_clips(tmp_path / "audio", 4)
    write_manifest(str(tmp_path / "m.parquet"), from_clips(clips, ["dog", "rain"]))
    command = prepare_command(tmp_path / "m.parquet", tmp_path / "out")
    assert ray_job.main(command) == 0
    before = contents(str(tmp_path / "out"))
    capfd.readouterr()
    assert ray_job.main(command) == 0
    assert capfd.readouterr().out == f"{tmp_path}/out: already complete\n"
    line = error_line([*command, "--max-duration-s", "9"], capfd)
    assert line.startswith(f"{tmp_path}/out: ")
    assert_names(line, "max_duration_s", "9.0", "--out")
    assert contents(str(tmp_path / "out")) == before


@pytest.mark.usefixtures("session")
def test_storage_error_in_a_worker_is_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # The start of a process' memory cannot be read, like a file on a broken disk.
    clips = [replace(write_clips(tmp_path / "audio", 1)[0], uri="/proc/self/mem")]
    write_manifest(str(tmp_path / "m.parquet"), from_clips(clips, ["dog", "rain"]))
    command = prepare_command(tmp_path / "m.parquet", tmp_path / "out")
    line = error_line(command, capfd, progress=["clips: 0/1 (stopped)"])
    assert line.startswith("/proc/self/mem: ")
    assert_names(line, "resume")
    assert not (tmp_path / "out" / "card.json").exists()


# --- real audio --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("session")
def test_esc10_is_prepared_in_a_bucket(esc10: Path, s3: str) -> None:
    for path in sorted(esc10.rglob("*")):
        if path.is_file():
            name = path.relative_to(esc10).as_posix()
            storage.write_bytes(f"{s3}/esc10/{name}", path.read_bytes())
    manifest_path = f"{s3}/esc10.parquet"
    assert ray_job.main(["manifest", f"{s3}/esc10", "--out", manifest_path]) == 0
    assert read_manifest(manifest_path).clips.num_rows == 400
    assert ray_job.main(["prepare", manifest_path, "--out", f"{s3}/prepared"]) == 0
    dataset = open_dataset(f"{s3}/prepared")
    assert dataset.index.num_rows == dataset.card.num_clips == 400
    assert dataset.card.rejects.num == 0
    assert len(dataset.card.shards) == 16
    for fold in range(1, 6):
        assert dataset.select("train", fold=fold).num_rows == 80
    assert set(dataset.card.class_counts["train"].values()) == {40}
    stored = [dataset.read_fbank(row) for row in range(0, 400, 57)]
    assert {numbers.shape[1] for numbers in stored} == {128}
