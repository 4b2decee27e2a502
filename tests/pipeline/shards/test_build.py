"""Shards, built without Ray: builds are reproducible, and bad clips are named."""

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from pipeline import storage
from pipeline.dataset.card import RejectedClips
from pipeline.dataset.prepared import open_dataset
from pipeline.fbank import fbank
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip
from pipeline.shards import build
from pipeline.shards.fetch import fetch_ahead
from pipeline.shards.parts import part_path, read_part
from tests.support.audio import encode, noise, write_clips
from tests.support.errors import refused
from tests.support.preparation import (
    SETTINGS,
    bad_clips,
    die,
    files,
    planned_ids,
    preparation,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """14 good clips in two splits: 3 shards of training clips, 1 of evaluation clips."""
    folder = tmp_path_factory.mktemp("audio")
    return write_clips(folder, 10) + write_clips(folder, 4, split="eval")


def test_building_twice_gives_the_same_bytes(tmp_path: Path, clips: list[Clip]) -> None:
    first = preparation(tmp_path / "1", clips)
    second = preparation(tmp_path / "2", clips[::-1], reads_ahead=1)
    first.build()
    second.build(["train-00002", "eval-00000"])
    second.build(["train-00001"])
    second.build(["train-00000"])
    first.finish()
    second.finish()
    assert len(files(tmp_path / "1")) == 7
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_part_file_describes_its_shard(tmp_path: Path, clips: list[Clip]) -> None:
    bad = bad_clips(tmp_path / "bad")["fetch: not found"]
    prep = preparation(tmp_path, [*clips[:3], bad])
    [part] = prep.build()
    [spec] = prep.plan.specs
    assert read_part(part_path(str(tmp_path), spec.name)) == part
    tar = (tmp_path / "shards" / "train-00000.tar").read_bytes()
    assert part.fingerprint == spec.fingerprint
    assert part.tar is not None
    assert (part.tar.name, part.tar.num_clips) == ("shards/train-00000.tar", 3)
    assert (part.tar.size_bytes, part.tar.sha256) == (len(tar), hashlib.sha256(tar).hexdigest())
    assert [reject.id for reject in part.rejects] == [bad.id]
    assert set(part.stages_s) == {"fetch", "decode", "fbank", "write"}


def test_index_describes_the_stored_fbanks(tmp_path: Path, clips: list[Clip]) -> None:
    prep = preparation(tmp_path, [replace(clips[3], start_s=0.05, end_s=0.25)])
    [part] = prep.build()
    [row] = part.index.to_pylist()
    samples, _ = soundfile.read(clips[3].uri, dtype="float32")
    expected = fbank(torch.from_numpy(samples[800:4_000]), FbankSettings()).half().numpy()
    tar = (tmp_path / row["shard"]).read_bytes()
    stored = tar[row["offset_bytes"] : row["offset_bytes"] + row["size_bytes"]]
    assert stored == expected.tobytes()
    exact = expected.astype(np.float64)
    assert row["frames"] == len(expected) == 18
    assert row["duration_s"] == 0.2
    assert row["fbank_sum"] == pytest.approx(exact.sum(), rel=1e-14)
    assert row["fbank_sumsq"] == pytest.approx((exact**2).sum(), rel=1e-14)
    given_facts = {name: row[name] for name in ("id", "uri", "labels", "split", "fold")}
    assert given_facts == {
        "id": clips[3].id,
        "uri": clips[3].uri,
        "labels": list(clips[3].labels),
        "split": "train",
        "fold": 1,
    }
    with tarfile.open(fileobj=io.BytesIO(tar)) as members:
        document = members.extractfile(members.getmembers()[0])
        assert document is not None
        assert json.load(document) == {
            "id": clips[3].id,
            "labels": list(clips[3].labels),
            "split": "train",
            "fold": 1,
            "duration_s": 0.2,
        }


def test_ledger_holds_every_reject_reason(tmp_path: Path, clips: list[Clip]) -> None:
    bad = bad_clips(tmp_path / "bad")
    prep = preparation(tmp_path / "out", [*clips, *bad.values()])
    prep.build()
    summary = prep.finish()
    ledger = storage.read_table(f"{tmp_path}/out/rejects.parquet").to_pylist()
    assert [row["id"] for row in ledger] == sorted(clip.id for clip in bad.values())
    assert {f"{row['stage']}: {row['reason']}": row["uri"] for row in ledger} == {
        reason: clip.uri for reason, clip in bad.items()
    }
    dataset = open_dataset(str(tmp_path / "out"))
    reasons = dict.fromkeys(sorted(bad), 1)
    assert dataset.card.rejects == RejectedClips(num=len(bad), by_reason=reasons)
    assert sorted(dataset.index["id"].to_pylist()) == sorted(clip.id for clip in clips)
    assert (summary.num_clips, summary.num_rejects) == (len(clips), len(bad))


def test_shard_without_good_clips_has_no_tar(tmp_path: Path, clips: list[Clip]) -> None:
    bad = bad_clips(tmp_path / "bad").values()
    prep = preparation(tmp_path / "out", [*clips, *(replace(clip, split="broken") for clip in bad)])
    parts = prep.build()
    assert [part.tar is None for part in parts] == [True, True, False, False, False, False]
    assert prep.finished() == {spec.name for spec in prep.plan.specs}
    summary = prep.finish()
    assert summary.num_shards == 4
    dataset = open_dataset(str(tmp_path / "out"))
    assert list(dataset.card.splits) == ["eval", "train"]
    assert not list((tmp_path / "out" / "shards").glob("broken*"))


def test_storage_error_stops_the_task(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    prep = preparation(tmp_path, clips[:2])

    def fail(path: str, **_: object) -> bytes:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(storage, "read_file", fail)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with refused(clips[1].uri, "Input/output error", remedy="resume"):
        prep.build()
    assert prep.finished() == set()


def test_no_thread_outlives_a_task(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []  # keeps objects from being closed by the garbage collector

    def keep(clips: list[Clip], *limits: int) -> Generator[bytes | Exception, None, None]:
        contents = fetch_ahead(clips, *limits)
        kept.append(contents)
        return contents

    monkeypatch.setattr(build, "fetch_ahead", keep)
    before = set(threading.enumerate())
    prep = preparation(tmp_path, clips)
    prep.build()
    assert set(threading.enumerate()) <= before
    monkeypatch.setattr(build, "decode_audio", die)
    with pytest.raises(KeyboardInterrupt):
        prep.build()
    assert set(threading.enumerate()) <= before
    assert len(kept) == len(prep.plan.specs) + 1


# --- finished shards ---------------------------------------------------------------------------


def test_finished_shard_has_part_tar_and_fingerprint(tmp_path: Path, clips: list[Clip]) -> None:
    prep = preparation(tmp_path, clips)
    names = {spec.name for spec in prep.plan.specs}
    assert prep.finished() == set()
    prep.build(["train-00000"])
    assert prep.finished() == {"train-00000"}
    with refused(tmp_path, ["eval-00000", "train-00001", "train-00002"], remedy="prepare"):
        prep.finish()
    prep.build()
    assert prep.finished() == prep.finished(retry_rejects=True) == names
    changed_id = planned_ids(prep.plan)[1][0]
    changed = preparation(
        tmp_path,
        [replace(clip, labels=()) if clip.id == changed_id else clip for clip in clips],
    )
    assert changed.finished() == names - {"train-00000"}
    (tmp_path / "shards" / "train-00001.tar").unlink()
    assert prep.finished() == names - {"train-00001"}
    assert preparation(tmp_path, clips, replace(SETTINGS, clips_per_shard=5)).finished() == set()


def test_retry_rebuilds_only_shards_with_rejects(tmp_path: Path, clips: list[Clip]) -> None:
    late = tmp_path / "late.wav"
    listed = [*clips, Clip(id="late", uri=str(late), labels=("dog",), split="eval")]
    prep = preparation(tmp_path / "out", listed)
    prep.build()
    names = {spec.name for spec in prep.plan.specs}
    waiting = names - prep.finished(retry_rejects=True)
    assert len(waiting) == 1
    late.write_bytes(encode(noise(0.5, 16_000)))
    prep.build(sorted(waiting))
    assert prep.finished(retry_rejects=True) == names
    prep.finish()
    at_once = preparation(tmp_path / "at once", listed)
    at_once.build()
    at_once.finish()
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_stale_part_does_not_vouch_for_a_new_tar(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late.wav"
    prep = preparation(tmp_path / "out", [Clip(id="late", uri=str(late), labels=()), *clips[:3]])
    prep.build()
    assert prep.finished() == {"train-00000"}
    late.write_bytes(encode(noise(0.5, 16_000)))
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_part", die)
        with pytest.raises(KeyboardInterrupt):
            prep.build()
    # The tar now has four clips; the old part lists three, at other offsets.
    assert prep.finished() == set()


@pytest.mark.parametrize("step", ["ShardWriter.finish", "write_part"])
def test_interrupted_shard_is_rebuilt_to_the_same_bytes(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = preparation(tmp_path / "whole", clips)
    whole.build()
    whole.finish()
    prep = preparation(tmp_path / "out", clips)
    prep.build(["train-00000"])
    with monkeypatch.context() as patch:
        patch.setattr(f"pipeline.shards.build.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            prep.build(["train-00001"])
    assert prep.finished() == {"train-00000"}
    prep.build(["eval-00000", "train-00001", "train-00002"])
    prep.finish()
    assert files(tmp_path / "out") == files(tmp_path / "whole")
