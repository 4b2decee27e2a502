"""`prepare` against a storage that fails now and then, or permanently from some moment on."""

import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import storage
from pipeline.audio.decode import Decoded, decode_audio
from pipeline.dataset.prepared import open_dataset
from pipeline.errors import UserError
from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards import build
from pipeline.shards.fetch import fetch_ahead
from tests.conftest import forget_clients
from tests.support.audio import encode, noise, write_clips
from tests.support.errors import assert_names
from tests.support.faulty_proxy import KINDS, Faults, FaultyProxy
from tests.support.preparation import LABELS, contents
from tests.support.prepared import make_prepared, tiny_recipe, write_recipe
from tests.support.steps import own_lines, started
from tests.support.without_ray import prepare

NUM_SHARDS = 7


def slow(*values: object) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.faults.RETRY_AFTER_S", (0.1, 0.1, 0.1))


@pytest.fixture
def manifest(s3: str, tmp_path: Path) -> Manifest:
    """20 clips in single files, 4 in a tar and 4 in Parquet, all in the bucket."""
    clips = []
    for clip in write_clips(tmp_path / "audio", 20):
        uri = f"{s3}/{Path(clip.uri).name}"
        storage.write_bytes(uri, Path(clip.uri).read_bytes())
        clips.append(Clip(id=clip.id, uri=uri, labels=clip.labels))
    contents = [encode(noise(0.4, 16_000, seed=100 + number)) for number in range(8)]
    tar, table = f"{s3}/a.tar", f"{s3}/a.parquet"
    storage.write_bytes(tar, b"".join(contents[:4]))
    audio = pa.array([{"bytes": content, "path": None} for content in contents[4:]])
    pq.write_table(pa.table({"audio": audio}), tmp_path / "a.parquet", row_group_size=2)
    storage.write_bytes(table, (tmp_path / "a.parquet").read_bytes())
    for number, content in enumerate(contents[:4]):
        size = len(content)
        location: dict[str, Any] = {"offset_bytes": number * size, "size_bytes": size}
        clips.append(Clip(id=f"tar {number}", uri=tar, labels=("dog",), **location))
    for number in range(4):
        location = {"row_group": number // 2, "row": number % 2}
        clips.append(Clip(id=f"row {number}", uri=table, labels=("rain",), **location))
    return from_clips(clips, LABELS)


@pytest.fixture
def reference(manifest: Manifest, tmp_path: Path) -> dict[str, bytes]:
    """The data set, prepared before anything fails."""
    summary = prepare(manifest, tmp_path / "reference", max_reject_share=0.0)
    assert summary is not None
    assert summary.num_shards == NUM_SHARDS
    return contents(f"{tmp_path}/reference")


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize("seed", [4, slow(5)])
def test_passing_faults_change_nothing(
    seed: int, s3: str, proxy: FaultyProxy, manifest: Manifest, reference: dict[str, bytes]
) -> None:
    proxy.spoil(Faults(share=0.15, seed=seed))
    prepare(manifest, f"{s3}/out", max_reject_share=0.0)
    assert set(proxy.injected) == set(KINDS)
    assert proxy.injected.total() >= 15
    proxy.spoil(Faults())
    assert contents(f"{s3}/out") == reference


def test_key_that_is_missing_for_a_moment_costs_no_clip(
    s3: str, proxy: FaultyProxy, manifest: Manifest, reference: dict[str, bytes]
) -> None:
    key = manifest.clips["uri"][5].as_py().removeprefix(s3)
    proxy.spoil(Faults(share=1.0, kinds=("missing",), only=f"^GET {key}$", at_most=1))
    prepare(manifest, f"{s3}/out", max_reject_share=0.0)
    assert proxy.injected["missing"] == 1
    assert contents(f"{s3}/out") == reference


@pytest.mark.parametrize("kind", ["missing", "denied"])
def test_result_is_the_same_whichever_run_met_a_missing_key(
    kind: str, s3: str, proxy: FaultyProxy, manifest: Manifest, reference: dict[str, bytes]
) -> None:
    key = manifest.clips["uri"][5].as_py().removeprefix(s3)
    proxy.spoil(Faults(share=1.0, kinds=(kind,), only=f"(GET|HEAD) {key}$"))
    for _ in range(2):
        prepare(manifest, f"{s3}/out")
        assert open_dataset(f"{s3}/out").card.rejects.num == 1
    assert prepare(manifest, f"{s3}/out") is None
    proxy.spoil(Faults())
    summary = prepare(manifest, f"{s3}/out")
    assert summary is not None
    assert summary.num_shards_built == 1
    assert contents(f"{s3}/out") == reference


@pytest.mark.usefixtures("short_pauses")
def test_every_operation_is_retried(s3: str, proxy: FaultyProxy) -> None:
    path = f"{s3}/some/file"
    operations: list[tuple[Callable[[], object], object]] = [
        (lambda: storage.write_bytes(path, b"content"), None),
        (lambda: storage.exists(path), True),
        (lambda: storage.read_bytes(path), b"content"),
        (lambda: storage.open_binary(path).read(), b"content"),
        (lambda: storage.list_files(s3), [path]),
        (lambda: storage.remove(path), None),
        (lambda: storage.exists(path), False),
    ]
    for operation, expected in operations:
        proxy.spoil(Faults(share=1.0, kinds=("reset",), at_most=5))
        assert operation() == expected
        assert proxy.injected.total() == 5


@pytest.mark.usefixtures("short_pauses")
def test_truncated_responses_never_count_as_whole(s3: str, proxy: FaultyProxy) -> None:
    rng = np.random.default_rng(0)
    written = {f"{s3}/{number}": rng.bytes(1 + 7_000 * number) for number in range(20)}
    for path, content in written.items():
        storage.write_bytes(path, content)
    proxy.spoil(Faults(share=0.7, kinds=("cut", "reset in body", "stall")))

    def is_whole(path: str, size_bytes: int | None) -> bool:
        try:
            return storage.read_file(path, 0, size_bytes) == written[path][:size_bytes]
        except Exception:
            return True

    with ThreadPoolExecutor(40) as pool:
        assert all(pool.map(is_whole, *zip(*product(written, (None, 1000)), strict=True)))
    assert proxy.injected.total() >= 40


@pytest.mark.usefixtures("short_pauses")
@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("expired", r"\b(ExpiredToken|400)\b.*\bAWS_ACCESS_KEY_ID\b"),
        ("slow down", r"\b(SlowDown|503)\b"),
        slow("expired 403", r"\b(ExpiredToken|403)\b.*\bAWS_ACCESS_KEY_ID\b"),
        slow("reset", r"\bno answer\b"),
        slow("cut", r"\btruncated\b"),
    ],
)
def test_lasting_fault_is_one_line_and_the_job_resumes_later(
    kind: str,
    fault: str,
    s3: str,
    proxy: FaultyProxy,
    manifest: Manifest,
    reference: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.storage.stores.MAX_RETRIES", 1)
    forget_clients()
    proxy.spoil(Faults(share=1.0, kinds=(kind,), after=60))
    with pytest.raises(UserError) as caught:
        prepare(manifest, f"{s3}/out", max_reject_share=0.0)
    message = str(caught.value)
    assert re.search(fault, message), message
    assert proxy.endpoint in message
    assert caught.value.where.startswith(f"{s3}/")
    assert "\n" not in message
    assert proxy.injected[kind] >= 1
    proxy.spoil(Faults())
    finished = storage.list_files(f"{s3}/out/_work/parts")
    assert 1 <= len(finished) < NUM_SHARDS
    assert not storage.exists(f"{s3}/out/card.json")
    summary = prepare(manifest, f"{s3}/out", max_reject_share=0.0)
    assert summary is not None
    assert summary.num_shards_built == NUM_SHARDS - len(finished)
    assert contents(f"{s3}/out") == reference


def test_waiting_for_storage_does_not_count_as_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def fetch(*arguments: Any) -> Iterator[bytes | Exception]:
        for content in fetch_ahead(*arguments):
            assert signal.getitimer(signal.ITIMER_REAL)[0] > 900
            yield content

    def decode(*arguments: Any, **options: Any) -> Decoded:
        decoded.append(signal.getitimer(signal.ITIMER_REAL)[0])
        return decode_audio(*arguments, **options)

    monkeypatch.setattr(build, "fetch_ahead", fetch)
    monkeypatch.setattr(build, "decode_audio", decode)
    before = signal.setitimer(signal.ITIMER_REAL, 1_000)  # a timer of the caller
    prepare(from_clips(write_clips(tmp_path / "audio", 5), LABELS), tmp_path / "out")
    signal.setitimer(signal.ITIMER_REAL, *before)
    assert decoded == pytest.approx([build.MAX_DECODE_S] * 5, abs=5)


@pytest.mark.slow
@pytest.mark.ray
def test_passing_faults_change_nothing_on_ray(
    s3: str,
    proxy: FaultyProxy,
    manifest: Manifest,
    reference: dict[str, bytes],
    tmp_path: Path,
) -> None:
    write_manifest(str(tmp_path / "m.parquet"), manifest)
    proxy.spoil(Faults(share=0.15, seed=4, stall_s=5.0))
    with started(
        [
            "prepare",
            f"{tmp_path}/m.parquet",
            f"--out={s3}/out",
            "--address=local",
            "--clips-per-shard=4",
            "--max-reject-share=0",
        ]
    ) as step:
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 0, stderr
    assert set(proxy.injected) == set(KINDS)
    proxy.spoil(Faults())
    assert contents(f"{s3}/out") == reference


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("faults", "named"),
    [
        (Faults(share=1.0, kinds=("slow down",), after=40), "SlowDown"),
        (Faults(share=1.0, kinds=("slow down",), only="PUT .*checkpoints"), "SlowDown"),
        (Faults(share=1.0, kinds=("denied",), only="GET .*shards"), "AccessDenied"),
    ],
)
def test_lasting_fault_ends_training_in_one_line(
    faults: Faults,
    named: str,
    s3: str,
    proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Driver and workers each wait for the storage.
    monkeypatch.setenv("AST_RAY_RETRY_S", "4")
    make_prepared(f"{s3}/data")
    recipe = write_recipe(tmp_path / "tiny.toml", tiny_recipe(train={"epochs": 3}))
    proxy.spoil(faults)
    command = ["train", str(recipe), f"--data={s3}/data", f"--out={s3}/run", "--address=local"]
    with started([*command, "--num-cpus=2"]) as step:
        _, stderr = step.communicate(timeout=600)
    assert step.returncode == 1, stderr
    [line] = [line for line in own_lines(stderr) if "error" in line]
    assert_names(line, named)
    assert s3 in line
