"""Plan, shards, ledger, index and card, without Ray: what is done twice is the same."""

import hashlib
import io
import json
import math
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import build, storage
from pipeline.assemble import PrepareSummary, assemble, complete_card, finished_parts
from pipeline.build import INDEX_SCHEMA, BuildJob, Part, build_shard, part_path, read_part
from pipeline.dataset import PreparedDataset, open_dataset
from pipeline.decode import DecodeSettings
from pipeline.errors import UserError
from pipeline.fbank import FbankSettings, fbank
from pipeline.manifest import Clip, Manifest, from_clips
from pipeline.plan import Plan, PrepareSettings, make_plan, read_shard_clips
from pipeline.rejects import check_share
from tests.audio import encode, noise, tone, write_clips

LABELS = ("rain", "dog", "never")
SETTINGS = PrepareSettings(clips_per_shard=4)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A manifest with its plan, and the job that builds it."""

    manifest: Manifest
    plan: Plan
    job: BuildJob

    def build(self, names: Sequence[str] | None = None) -> list[Part]:
        self.plan.write(self.job.plan_path)
        return [
            build_shard(spec, self.job)
            for spec in self.plan.specs
            if names is None or spec.name in names
        ]

    def finish(self, *, max_reject_share: float = 1.0, built: Sequence[str] = ()) -> PrepareSummary:
        return assemble(
            self.plan,
            self.manifest,
            self.job,
            built=set(built),
            max_reject_share=max_reject_share,
            elapsed_s=lambda: 2.0,
        )

    def finished(self, *, retry_rejects: bool = False) -> set[str]:
        return set(finished_parts(self.plan, self.job.output, retry_rejects=retry_rejects))


def preparation(
    output: Path, clips: Sequence[Clip], prepare: PrepareSettings = SETTINGS, **job: Any
) -> Preparation:
    manifest = from_clips(clips, LABELS)
    return Preparation(
        manifest=manifest,
        plan=make_plan(manifest, prepare),
        job=BuildJob(
            output=str(output),
            plan_path=f"{output}/_work/plan.parquet",
            settings=prepare,
            **job,
        ),
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """14 good clips in two splits: 3 shards of training clips, 1 of evaluation clips."""
    folder = tmp_path_factory.mktemp("audio")
    return write_clips(folder, 10) + write_clips(folder, 4, split="eval")


def bad_clips(folder: Path) -> dict[str, Clip]:
    """A clip for each way to be rejected, by the "stage: reason" it gets."""
    contents: dict[str, bytes | None] = {
        "fetch: not found": None,
        "decode: the file is empty": b"",
        "decode: samples that are NaN or infinite": encode(
            np.full(16_000, np.nan), subtype="FLOAT"
        ),
        "decode: ends before the length its header gives": encode(noise(1.0, 16_000))[:9_000],
        "decode: longer than 600 s": encode(np.zeros(601 * 1_000), 1_000, "FLAC"),
        "fbank: shorter than one 25 ms frame": encode(noise(0.02, 16_000)),
        "fbank: levels too high for the fbank to be finite": encode(
            1e30 * tone(0.1, 16_000), subtype="FLOAT"
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for number, (reason, content) in enumerate(contents.items()):
        path = folder / f"bad-{number}"
        if content is not None:
            path.write_bytes(content)
        found[reason] = Clip(id=f"bad {number}", uri=str(path), labels=("dog",))
    return found


def die(*_: object, **__: object) -> None:
    """In the place of a function: what happens when the process is stopped there."""
    raise KeyboardInterrupt


def files(folder: Path) -> dict[str, bytes]:
    """What is in a data set, but the times: everything of it must be the same in every run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "_work" not in path.parts and path.name != "prepare_summary.json"
    }


# --- plan --------------------------------------------------------------------------------------


def planned_ids(plan: Plan) -> list[list[str]]:
    ids, start, found = plan.clips["id"].to_pylist(), 0, []
    for spec in plan.specs:
        found.append(ids[start : start + spec.num_clips])
        start += spec.num_clips
    assert start == len(ids)
    return found


@settings(max_examples=40)
@given(
    splits=st.lists(st.sampled_from(["train", "eval", "Test_2"]), min_size=1, max_size=80),
    clips_per_shard=st.integers(1, 30),
    data=st.data(),
)
def test_the_plan_holds_every_clip_once_whatever_their_order(
    splits: list[str], clips_per_shard: int, data: st.DataObject
) -> None:
    clips = [
        Clip(id=f"clip {i}", uri=f"/{i}", labels=("dog",), split=split)
        for i, split in enumerate(splits)
    ]
    chosen = PrepareSettings(clips_per_shard=clips_per_shard)
    plan = make_plan(from_clips(clips, LABELS), chosen)
    shuffled = make_plan(from_clips(data.draw(st.permutations(clips)), LABELS), chosen)
    assert shuffled == replace(plan, clips=shuffled.clips)
    assert shuffled.clips.equals(plan.clips)
    planned = [clip_id for ids in planned_ids(plan) for clip_id in ids]
    assert sorted(planned) == sorted(clip.id for clip in clips)
    split_of = {clip.id: clip.split for clip in clips}
    names = [spec.name for spec in plan.specs]
    assert names == sorted(set(names))
    for spec, ids in zip(plan.specs, planned_ids(plan), strict=True):
        assert 1 <= len(ids) <= clips_per_shard
        assert {split_of[clip_id] for clip_id in ids} == {spec.name.rpartition("-")[0]}


def test_a_shard_holds_a_mix_of_what_the_manifest_lists_in_order() -> None:
    clips = [
        Clip(id=f"{label}/{i}", uri="/x", labels=(label,)) for label in LABELS for i in range(200)
    ]
    plan = make_plan(from_clips(clips, LABELS), PrepareSettings())
    assert len(plan.specs) == 16
    for ids in planned_ids(plan):
        counts = Counter(clip_id.split("/")[0] for clip_id in ids)
        assert min(counts[label] for label in LABELS) >= 3


def test_whatever_decides_the_bytes_changes_the_fingerprint() -> None:
    clips = [Clip(id=str(i), uri=f"/{i}", labels=("dog",)) for i in range(8)]
    manifest = from_clips(clips, LABELS)
    plans = [
        make_plan(manifest, SETTINGS),
        make_plan(manifest, replace(SETTINGS, clips_per_shard=3)),
        make_plan(manifest, replace(SETTINGS, fbank=FbankSettings(num_mels=64))),
        make_plan(manifest, replace(SETTINGS, decode=DecodeSettings(max_duration_s=5))),
        make_plan(replace(manifest, labels=(*LABELS, "more")), SETTINGS),
        *(
            make_plan(from_clips([replace(clips[0], **change), *clips[1:]], LABELS), SETTINGS)
            for change in (
                {"uri": "/other"},
                {"labels": ("rain",)},
                {"fold": 1},
                {"start_s": 1.0},
                {"end_s": 1.0},
                {"id": "other"},
            )
        ),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    # One clip changed leaves the other shard as it was: it need not be built again.
    first, second = plans[0], plans[5]
    assert len({spec.fingerprint for spec in first.specs + second.specs}) == 3


@pytest.mark.parametrize("split", ["", "a/b", "a.b", "-a", "ü", "a b", ".."])
def test_a_split_that_cannot_name_a_file_is_refused(split: str) -> None:
    clips = [Clip(id="a", uri="/a", labels=(), split=split)]
    with pytest.raises(UserError, match="it may hold only letters, digits, '-' and '_'"):
        make_plan(from_clips(clips, LABELS), SETTINGS)


@pytest.mark.parametrize("clips_per_shard", [0, 100_001])
def test_a_shard_size_out_of_range_is_refused(clips_per_shard: int) -> None:
    with pytest.raises(ValueError, match=r"^clips_per_shard: must be from 1 to 100000, got"):
        PrepareSettings(clips_per_shard=clips_per_shard)


def test_a_task_reads_its_own_clips_of_the_plan(tmp_path: Path, clips: list[Clip]) -> None:
    prep = preparation(tmp_path, clips)
    assert [spec.name for spec in prep.plan.specs] == [
        "eval-00000",
        "train-00000",
        "train-00001",
        "train-00002",
    ]
    prep.plan.write(prep.job.plan_path)
    for spec, ids in zip(prep.plan.specs, planned_ids(prep.plan), strict=True):
        rows = read_shard_clips(prep.job.plan_path, spec.row_group)
        assert rows["id"].to_pylist() == ids


# --- shards ------------------------------------------------------------------------------------


def test_built_twice_is_the_same(tmp_path: Path, clips: list[Clip]) -> None:
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


def test_a_part_file_says_what_was_built(tmp_path: Path, clips: list[Clip]) -> None:
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


def test_the_index_says_what_is_stored(tmp_path: Path, clips: list[Clip]) -> None:
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


def test_every_reason_to_reject_is_in_the_ledger(tmp_path: Path, clips: list[Clip]) -> None:
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
    assert dataset.card["rejects"] == {
        "num": len(bad),
        "by_reason": dict.fromkeys(sorted(bad), 1),
    }
    assert sorted(dataset.index["id"].to_pylist()) == sorted(clip.id for clip in clips)
    assert (summary.num_clips, summary.num_rejects) == (len(clips), len(bad))


def test_a_shard_of_rejects_alone_has_no_tar(tmp_path: Path, clips: list[Clip]) -> None:
    bad = bad_clips(tmp_path / "bad").values()
    prep = preparation(tmp_path / "out", [*clips, *(replace(clip, split="broken") for clip in bad)])
    parts = prep.build()
    assert [part.tar is None for part in parts] == [True, True, False, False, False, False]
    assert prep.finished() == {spec.name for spec in prep.plan.specs}
    summary = prep.finish()
    assert summary.num_shards == 4
    dataset = open_dataset(str(tmp_path / "out"))
    assert list(dataset.card["splits"]) == ["eval", "train"]
    assert not list((tmp_path / "out" / "shards").glob("broken*"))


def test_a_storage_that_fails_stops_the_task(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    prep = preparation(tmp_path, clips[:2])

    def fail(path: str) -> bytes:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(storage, "_read", fail)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(UserError, match=r"cannot be read: .*Run the same command again to go on"):
        prep.build()
    assert prep.finished() == set()


def test_no_thread_outlives_a_task(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []  # so that nothing is closed by going out of sight
    read_ahead = storage.read_ahead

    def keep(paths: list[str], num_ahead: int) -> Generator[bytes | Exception, None, None]:
        contents = read_ahead(paths, num_ahead)
        kept.append(contents)
        return contents

    monkeypatch.setattr(storage, "read_ahead", keep)
    before = set(threading.enumerate())
    prep = preparation(tmp_path, clips)
    prep.build()
    assert set(threading.enumerate()) <= before
    monkeypatch.setattr(build, "decode_audio", die)
    with pytest.raises(KeyboardInterrupt):
        prep.build()
    assert set(threading.enumerate()) <= before
    assert len(kept) == len(prep.plan.specs) + 1


# --- what is finished --------------------------------------------------------------------------


def test_finished_is_what_has_its_part_its_tar_and_its_fingerprint(
    tmp_path: Path, clips: list[Clip]
) -> None:
    prep = preparation(tmp_path, clips)
    names = {spec.name for spec in prep.plan.specs}
    assert prep.finished() == set()
    prep.build(["train-00000"])
    assert prep.finished() == {"train-00000"}
    with pytest.raises(UserError, match=r"shards \['eval-00000', 'train-00001', 'train-00002'\]"):
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


def test_retrying_builds_only_shards_with_rejects(tmp_path: Path, clips: list[Clip]) -> None:
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


def test_stopped_between_a_new_tar_and_its_part_an_old_part_does_not_vouch_for_it(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "late.wav"
    prep = preparation(tmp_path / "out", [Clip(id="late", uri=str(late), labels=()), *clips[:3]])
    prep.build()
    assert prep.finished() == {"train-00000"}
    late.write_bytes(encode(noise(0.5, 16_000)))
    with monkeypatch.context() as patch:
        patch.setattr(build, "_write_part", die)
        with pytest.raises(KeyboardInterrupt):
            prep.build()
    # Four clips are in the tar now; the part of before would say three, at other places.
    assert prep.finished() == set()


@pytest.mark.parametrize("step", ["_put_tar", "_write_part"])
def test_stopped_in_a_shard_it_is_built_again_to_the_same_bytes(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = preparation(tmp_path / "whole", clips)
    whole.build()
    whole.finish()
    prep = preparation(tmp_path / "out", clips)
    prep.build(["train-00000"])
    with monkeypatch.context() as patch:
        patch.setattr(build, step, die)
        with pytest.raises(KeyboardInterrupt):
            prep.build(["train-00001"])
    assert prep.finished() == {"train-00000"}
    prep.build(["eval-00000", "train-00001", "train-00002"])
    prep.finish()
    assert files(tmp_path / "out") == files(tmp_path / "whole")


# --- the complete data set ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("prepared")
    prep = preparation(folder, clips)
    prep.build()
    prep.finish()
    return open_dataset(str(folder))


def test_the_card_describes_the_data_set(dataset: PreparedDataset, clips: list[Clip]) -> None:
    card = dataset.card
    assert (card["format_version"], card["num_clips"]) == (1, 14)
    assert card["fbank"]["num_mels"] == dataset.num_mels == 128
    assert tuple(card["labels"]) == tuple(dataset.labels) == LABELS
    assert card["class_counts"] == {
        "eval": {"rain": 2, "dog": 2, "never": 0},
        "train": {"rain": 5, "dog": 5, "never": 0},
    }
    for split, num_clips in (("eval", 4), ("train", 10)):
        facts = card["splits"][split]
        durations = [soundfile.info(clip.uri).duration for clip in clips if clip.split == split]
        assert facts["num_clips"] == num_clips == dataset.select(split).num_rows
        assert facts["duration_s"] == pytest.approx(sum(durations), abs=1e-9)
    folder = Path(dataset.path)
    for tar in card["shards"]:
        data = (folder / tar["name"]).read_bytes()
        assert (tar["size_bytes"], tar["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    for name in ("index", "rejects"):
        data = (folder / f"{name}.parquet").read_bytes()
        assert card[f"{name}_sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("split", ["train", "eval"])
def test_mean_and_deviation_are_those_of_every_stored_number(
    dataset: PreparedDataset, split: str
) -> None:
    rows = [i for i, own in enumerate(dataset.index["split"].to_pylist()) if own == split]
    fbanks = [dataset.read_fbank(row) for row in rows]
    stored = np.concatenate([numbers.ravel() for numbers in fbanks]).astype(np.float64)
    facts = dataset.card["splits"][split]
    assert facts["num_frames"] == sum(len(numbers) for numbers in fbanks)
    assert facts["mean"] == pytest.approx(stored.mean(), rel=1e-12)
    assert facts["std"] == pytest.approx(stored.std(), rel=1e-12)
    if split == "train":
        assert (dataset.card["mean"], dataset.card["std"]) == (facts["mean"], facts["std"])


def test_any_clip_is_one_read(dataset: PreparedDataset) -> None:
    members: dict[str, bytes] = {}
    for facts in dataset.card["shards"]:
        with tarfile.open(Path(dataset.path) / facts["name"]) as tar:
            for member in tar:
                content = tar.extractfile(member)
                assert content is not None
                members[member.name] = content.read()
    assert len(members) == 2 * dataset.index.num_rows == 28
    for row, clip_id in enumerate(dataset.index["id"].to_pylist()):
        member_bytes = members[f"{clip_id.replace('/', '%2F')}.npy"]
        expected = np.load(io.BytesIO(member_bytes), allow_pickle=False)
        np.testing.assert_array_equal(dataset.read_fbank(row), expected)
    assert dataset.index.schema.equals(INDEX_SCHEMA)


def test_selecting_splits_and_folds(tmp_path: Path, clips: list[Clip]) -> None:
    folded = [replace(clip, fold=1 + number % 2) for number, clip in enumerate(clips[:10])]
    prep = preparation(tmp_path, folded)
    prep.build()
    prep.finish()
    dataset = open_dataset(str(tmp_path))
    assert set(dataset.select("train", fold=1)["id"].to_pylist()) == {c.id for c in folded[::2]}
    others = dataset.select("train", except_fold=1)["id"].to_pylist()
    assert set(others) == {clip.id for clip in folded[1::2]}
    with pytest.raises(UserError, match="no split 'test'; there are: train"):
        dataset.select("test")
    with pytest.raises(UserError, match=r"split 'train' has no fold 3, only \[1, 2\]"):
        dataset.select("train", fold=3)


def test_without_a_training_split_the_statistics_are_of_all_clips(
    tmp_path: Path, clips: list[Clip]
) -> None:
    prep = preparation(tmp_path, [replace(clip, split=f"x{clip.split}") for clip in clips])
    prep.build()
    prep.finish()
    card = open_dataset(str(tmp_path)).card
    sums = storage.read_table(f"{tmp_path}/index.parquet")["fbank_sum"].to_pylist()
    num_values = 128 * sum(facts["num_frames"] for facts in card["splits"].values())
    assert card["mean"] == math.fsum(sums) / num_values


def test_too_many_rejects_leave_the_ledger_and_no_card(tmp_path: Path, clips: list[Clip]) -> None:
    missing = [Clip(id=f"no {i}", uri=f"/none/{i}.wav", labels=("dog",)) for i in range(5)]
    bad = bad_clips(tmp_path / "bad")
    few = [bad["decode: the file is empty"], bad["fbank: shorter than one 25 ms frame"]]
    prep = preparation(tmp_path / "out", [*clips, *missing, *few])
    prep.build()
    with pytest.raises(UserError) as caught:
        prep.finish(max_reject_share=0.3)
    message = str(caught.value)
    assert message.startswith(
        "7 of 21 clips were rejected, more than the allowed share of 0.3; commonest: "
        "fetch: not found (5); decode: the file is empty (1); fbank: shorter than one 25 ms "
    )
    assert f"{tmp_path}/out/rejects.parquet" in message
    assert "--max-reject-share" in message
    assert set(files(tmp_path / "out")) == {
        "rejects.parquet",
        *(f"shards/{spec.name}.tar" for spec in prep.plan.specs),
    }
    with pytest.raises(UserError, match="no complete data set there"):
        open_dataset(str(tmp_path / "out"))
    assert complete_card(str(tmp_path / "out"), prep.plan) is None
    # With a larger share the same parts are enough: nothing is built again.
    assert prep.finished() == {spec.name for spec in prep.plan.specs}
    assert prep.finish(max_reject_share=1 / 3).num_clips_built == 0
    assert open_dataset(str(tmp_path / "out")).card["rejects"]["num"] == 7


@pytest.mark.parametrize("num_rejects", range(1, 100))
def test_a_share_of_exactly_the_limit_is_allowed(num_rejects: int) -> None:
    limit = num_rejects / 100
    check_share({"a": num_rejects}, 100, max_share=limit, ledger="ledger")
    with pytest.raises(UserError, match=f"{num_rejects + 1} of 100 clips were rejected"):
        check_share({"a": num_rejects + 1}, 100, max_share=limit, ledger="ledger")


def test_a_data_set_without_any_clip_is_refused(tmp_path: Path) -> None:
    prep = preparation(tmp_path / "out", list(bad_clips(tmp_path / "bad").values()))
    prep.build()
    with pytest.raises(UserError, match="7 of 7 clips were rejected"):
        prep.finish(max_reject_share=1.0)
    assert not (tmp_path / "out" / "card.json").exists()


def test_what_an_earlier_plan_left_is_removed_but_nothing_else(
    tmp_path: Path, clips: list[Clip]
) -> None:
    earlier = preparation(tmp_path, clips, replace(SETTINGS, clips_per_shard=1))
    earlier.build(["train-00000", "train-00009", "eval-00003"])
    shards = tmp_path / "shards"
    (shards / ".train-00001.tar.4711.0123abcd").write_bytes(b"of a killed process")
    (shards / "mine.tar").write_bytes(b"of the user")
    prep = preparation(tmp_path, clips)
    assert prep.finished() == set()
    prep.build()
    prep.finish()
    assert sorted(path.name for path in shards.iterdir()) == [
        "eval-00000.tar",
        "mine.tar",
        "train-00000.tar",
        "train-00001.tar",
        "train-00002.tar",
    ]


def test_the_card_is_what_comes_last(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write_bytes: Callable[[str, bytes], None] = storage.write_bytes

    def record(path: str, data: bytes) -> None:
        order.append(path.removeprefix(f"{tmp_path}/"))
        write_bytes(path, data)

    monkeypatch.setattr(storage, "write_bytes", record)
    prep = preparation(tmp_path, clips[:3])
    prep.build()
    prep.finish()
    assert order == [
        "_work/plan.parquet",
        "shards/train-00000.tar",
        "_work/parts/train-00000.parquet",
        "rejects.parquet",
        "index.parquet",
        "prepare_summary.json",
        "card.json",
    ]


def test_a_complete_data_set_is_known_by_its_plan(
    tmp_path: Path, dataset: PreparedDataset, clips: list[Clip]
) -> None:
    prep = preparation(Path(dataset.path), clips)
    assert complete_card(dataset.path, prep.plan) == dataset.card
    assert complete_card(str(tmp_path), prep.plan) is None
    other = preparation(Path(dataset.path), clips[1:])
    with pytest.raises(UserError, match="holds a data set prepared from another manifest"):
        complete_card(dataset.path, other.plan)


def test_the_fingerprint_covers_the_whole_card(dataset: PreparedDataset) -> None:
    card = {key: value for key, value in dataset.card.items() if key != "fingerprint"}
    canonical = json.dumps(card, sort_keys=True)
    assert dataset.card["fingerprint"] == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_data_set_of_another_format_is_refused(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/card.json", {"format_version": 99})
    with pytest.raises(UserError, match="has format version 99, this program reads 1"):
        open_dataset(str(tmp_path))


def test_the_summary_counts_what_this_run_built(tmp_path: Path, clips: list[Clip]) -> None:
    prep = preparation(tmp_path, clips)
    prep.build()
    summary = prep.finish(built=["train-00001", "eval-00000"])
    assert (summary.num_shards, summary.num_shards_built) == (4, 2)
    assert summary.num_clips_built == 7
    assert summary.clips_per_s == 3.5
    sizes = [path.stat().st_size for path in (tmp_path / "shards").iterdir()]
    assert summary.size_bytes == sum(sizes)
    assert storage.read_json(f"{tmp_path}/prepare_summary.json")["num_clips_built"] == 7
