"""The plan: each clip in one shard, independent of the order of the manifest."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio.settings import DecodeSettings
from pipeline.errors import SettingValueError
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip, from_clips
from pipeline.shards.plan import make_plan, read_shard_clips, write_plan
from pipeline.shards.settings import PrepareSettings
from tests.support.errors import refused
from tests.support.preparation import LABELS, SETTINGS, planned_ids, preparation


@settings(max_examples=40)
@given(
    splits=st.lists(st.sampled_from(["train", "eval", "Test_2"]), min_size=1, max_size=80),
    clips_per_shard=st.integers(1, 30),
    data=st.data(),
)
def test_plan_holds_each_clip_once_in_any_order(
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


def test_shards_mix_clips_listed_class_by_class() -> None:
    clips = [
        Clip(id=f"{label}/{i}", uri="/x", labels=(label,)) for label in LABELS for i in range(200)
    ]
    plan = make_plan(from_clips(clips, LABELS), PrepareSettings())
    assert len(plan.specs) == 16
    for ids in planned_ids(plan):
        counts = Counter(clip_id.split("/")[0] for clip_id in ids)
        assert min(counts[label] for label in LABELS) >= 3


def test_fingerprint_changes_with_everything_that_decides_bytes() -> None:
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
def test_split_unfit_as_a_file_name_is_refused(split: str) -> None:
    clips = [Clip(id="a", uri="/a", labels=(), split=split)]
    with refused("the manifest", f"split {split!r}"):
        make_plan(from_clips(clips, LABELS), SETTINGS)


@pytest.mark.parametrize("clips_per_shard", [0, 100_001])
def test_shard_size_out_of_range_is_refused(clips_per_shard: int) -> None:
    with refused("clips_per_shard", 1, 100_000, f"got {clips_per_shard}", type=SettingValueError):
        PrepareSettings(clips_per_shard=clips_per_shard)


def test_task_reads_only_its_clips_from_the_plan(tmp_path: Path) -> None:
    splits = ["train"] * 10 + ["eval"] * 4
    clips = [Clip(id=str(i), uri="/x", labels=(), split=split) for i, split in enumerate(splits)]
    prep = preparation(tmp_path, clips)
    assert [spec.name for spec in prep.plan.specs] == [
        "eval-00000",
        "train-00000",
        "train-00001",
        "train-00002",
    ]
    write_plan(prep.plan, prep.job.work, prep.manifest)
    for spec, ids in zip(prep.plan.specs, planned_ids(prep.plan), strict=True):
        rows = read_shard_clips(prep.job.work, spec)
        assert rows["id"].to_pylist() == ids
