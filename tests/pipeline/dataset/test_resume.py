"""Resuming and extending a data set: new clips get new shards, other settings are refused."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ray_job
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset import prepare as preparing
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.files import read_manifest
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards.build import build_shard
from pipeline.shards.job import BuildJob
from pipeline.shards.match import match
from pipeline.shards.parts import Part
from pipeline.shards.plan import (
    DamagedPlanError,
    ShardSpec,
    make_plan,
    planned_fingerprint,
    read_plan,
    read_shard_clips,
    write_plan,
)
from pipeline.shards.settings import PrepareSettings
from pipeline.shards.usage import Usage
from tests.support.audio import encode, noise, write_clips
from tests.support.errors import assert_error_line, assert_names, refused
from tests.support.preparation import LABELS, SETTINGS, die, files, planned_ids
from tests.support.without_ray import prepare, tars, verify


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """18 training clips, 6 of evaluation and 3 of a further split."""
    folder = tmp_path_factory.mktemp("audio")
    numbers = {"train": 18, "eval": 6, "more": 3}
    return [
        clip
        for split, number in numbers.items()
        for clip in write_clips(folder, number, split=split)
    ]


def manifest_of(clips: Sequence[Clip], **numbers: int) -> Manifest:
    """A manifest with the given number of clips per split."""
    chosen = [[c for c in clips if c.split == split][:num] for split, num in numbers.items()]
    return from_clips([clip for part in chosen for clip in part], LABELS)


@pytest.fixture(scope="module")
def first(clips: list[Clip]) -> Manifest:
    return manifest_of(clips, train=9, eval=4)


@pytest.fixture(scope="module")
def before(first: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first data set, of 4 shards; nobody writes to it."""
    folder = tmp_path_factory.mktemp("before") / "out"
    prepare(first, folder)
    assert sorted(tars(folder)) == ["eval-00000", "train-00000", "train-00001", "train-00002"]
    return folder


@pytest.fixture
def copy(before: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(before, tmp_path / "out"))


def ids(folder: Path) -> list[str]:
    return list(pq.read_table(folder / "index.parquet")["id"].to_pylist())


def stop_after(number: int) -> Callable[[ShardSpec, BuildJob], Part]:
    """Replaces `build_shard`: interrupted after this many shards."""
    left = [None] * number

    def build(spec: ShardSpec, job: BuildJob) -> Part:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        return build_shard(spec, job)

    return build


# --- clips are added ---------------------------------------------------------------------------


def test_new_clips_make_new_shards_and_keep_the_old(
    copy: Path, before: Path, clips: list[Clip]
) -> None:
    old, old_ids = tars(copy), ids(copy)
    grown = manifest_of(clips, train=14, eval=4, more=3)
    summary = prepare(grown, copy)
    assert summary is not None
    assert (summary.num_shards_built, summary.num_clips_built, summary.num_clips) == (3, 8, 21)
    assert set(tars(copy)) - set(old) == {"more-00000", "train-00003", "train-00004"}
    assert {name: tars(copy)[name] for name in old} == old
    assert ids(copy)[: len(old_ids)] == old_ids
    assert set(ids(copy)[len(old_ids) :]) == set(grown.clips["id"].to_pylist()) - set(old_ids)
    assert verify(copy) == []
    assert prepare(grown, copy) is None

    # And once more.
    old, old_ids = tars(copy), ids(copy)
    everything = from_clips(clips, LABELS)
    summary = prepare(everything, copy)
    assert summary is not None
    assert (summary.num_shards_built, summary.num_clips) == (2, 27)
    assert set(tars(copy)) - set(old) == {"eval-00001", "train-00005"}
    assert {name: tars(copy)[name] for name in old} == old
    assert ids(copy)[: len(old_ids)] == old_ids
    assert sorted(ids(copy)) == sorted(clip.id for clip in clips)
    assert verify(copy) == []


@pytest.mark.parametrize("number", [0, 1, 2])
def test_interrupted_addition_resumes_to_the_same_bytes(
    number: int, copy: Path, before: Path, clips: list[Clip], tmp_path: Path
) -> None:
    grown = manifest_of(clips, train=14, eval=4, more=3)
    at_once = Path(shutil.copytree(before, tmp_path / "at once"))
    prepare(grown, at_once)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shards.build.build_shard", stop_after(number))
        with pytest.raises(KeyboardInterrupt):
            prepare(grown, copy)
    assert not (copy / "card.json").exists()
    summary = prepare(grown, copy)
    assert summary is not None
    assert summary.num_shards_built == 3 - number
    assert files(copy) == files(at_once)


def test_damage_to_a_grown_data_set_is_repaired(
    copy: Path, clips: list[Clip], tmp_path: Path
) -> None:
    grown = manifest_of(clips, train=14, eval=4, more=3)
    prepare(grown, copy)
    whole = files(copy)
    (copy / "shards" / "train-00004.tar").unlink()
    (copy / "shards" / "train-00000.tar").write_bytes(b"")
    (copy / "card.json").write_bytes(b"")
    summary = prepare(grown, copy)
    assert summary is not None
    assert summary.num_shards_built == 2
    assert files(copy) == whole


def test_later_common_subset_changes_only_the_index(copy: Path, first: Manifest) -> None:
    shards = tars(copy)
    rows = first.clips.to_pylist()
    chosen = from_clips(
        [Clip(**{**row, "common": n % 3 == 0}) for n, row in enumerate(rows)], LABELS
    )
    summary = prepare(chosen, copy)
    assert summary is not None
    assert (summary.num_shards_built, tars(copy)) == (0, shards)
    index = pq.read_table(copy / "index.parquet")
    common = {row["id"] for row in index.to_pylist() if row["common"]}
    assert common == {row["id"] for row in rows[::3]}
    assert prepare(chosen, copy) is None
    assert verify(copy) == []
    assert prepare(first, copy) is not None
    assert not any(pq.read_table(copy / "index.parquet")["common"].to_pylist())


def test_old_part_does_not_vouch_for_a_new_tar_of_equal_size(tmp_path: Path) -> None:
    late = tmp_path / "late.wav"
    clips = write_clips(tmp_path / "audio", 3, duration_s=0.1)
    manifest = from_clips([*clips, Clip(id="late", uri=str(late), labels=())], LABELS)
    prepare(manifest, tmp_path / "out")
    size_bytes = (tmp_path / "out" / "shards" / "train-00000.tar").stat().st_size
    late.write_bytes(encode(noise(0.03, 16_000)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shards.build.write_part", die)
        with pytest.raises(KeyboardInterrupt):
            prepare(manifest, tmp_path / "out", retry_rejects=True)
    assert (tmp_path / "out" / "shards" / "train-00000.tar").stat().st_size == size_bytes
    prepare(manifest, tmp_path / "out")
    prepare(manifest, tmp_path / "at once")
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_reordered_clips_are_already_complete(copy: Path, first: Manifest) -> None:
    turned = replace(first, clips=first.clips.take(list(range(first.clips.num_rows))[::-1]))
    written = tars(copy)
    assert prepare(turned, copy) is None
    assert tars(copy) == written


# --- what does not belong together -------------------------------------------------------------


def check_refused(
    manifest: Manifest, folder: Path, *values: object, settings: PrepareSettings = SETTINGS
) -> str:
    """Check that `prepare` refuses, names the values and changes nothing; gives the message."""

    def all_files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = all_files()
    with refused(folder, *values, remedy="--out") as caught:
        prepare(manifest, folder, settings)
    assert all_files() == before
    return str(caught.value)


def test_changed_settings_are_named_with_the_options_that_keep_them(
    copy: Path, first: Manifest
) -> None:
    decode = DecodeSettings(max_duration_s=9.0, max_file_bytes=7_000_000)
    other = PrepareSettings(clips_per_shard=5, decode=decode)
    limits = ("max_duration_s", 600.0, 9.0, "--max-duration-s 600.0", "--max-file-mb 500")
    check_refused(first, copy, *limits, "clips_per_shard", 4, 5, settings=other)
    other = replace(SETTINGS, decode=DecodeSettings(channel="left", strict=True))
    values = ("channel", "mean", "left", "strict", False, True, "--channel mean", "no --strict")
    check_refused(first, copy, *values, settings=other)
    check_refused(first, copy, "fbank", "audio", settings=replace(SETTINGS, store="audio"))
    other = replace(SETTINGS, fbank=FbankSettings(num_mels=64))
    message = check_refused(first, copy, "num_mels", 128, 64, settings=other)
    assert "repeat" not in message  # no option sets it


def test_manifest_of_none_of_the_clips_is_refused(
    copy: Path, clips: list[Clip], first: Manifest
) -> None:
    check_refused(manifest_of(clips, more=3), copy, 13)
    moved = [replace(clip, uri=f"/elsewhere{clip.uri}") for clip in clips]
    check_refused(manifest_of(moved, train=9, eval=4), copy, 13)


def test_unfinished_data_set_is_as_strict(
    clips: list[Clip], first: Manifest, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shards.build.build_shard", stop_after(1))
        with pytest.raises(KeyboardInterrupt):
            prepare(first, tmp_path)
    check_refused(manifest_of(clips, more=3), tmp_path, 13)
    check_refused(first, tmp_path, "store", settings=replace(SETTINGS, store="audio"))


def test_run_without_finished_shards_allows_other_settings(
    clips: list[Clip], first: Manifest, tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.shards.build.build_shard", stop_after(0))
        with pytest.raises(KeyboardInterrupt):
            prepare(first, tmp_path / "out")
    other, settings = manifest_of(clips, train=6, more=3), replace(SETTINGS, clips_per_shard=5)
    prepare(other, tmp_path / "out", settings)
    prepare(other, tmp_path / "at once", settings)
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def unlink(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def put(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def exchange(old: bytes, new: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes().replace(old, new))


def change_clip(path: Path) -> None:
    table = pq.read_table(path)
    rows = [row | {"uri": "/elsewhere.wav"} for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def without_shards(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"specs": []}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("plan/00000.parquet", unlink),
        ("plan/00000.parquet", cut),
        ("plan/00000.parquet", change_clip),
        ("plan.json", cut),
        ("plan.json", put(b"{}")),
        ("plan.json", put(b"[]")),
        ("plan.json", without_shards),
        ("plan.json", exchange(b'"format_version": 3', b'"format_version": 9')),
        ("plan.json", exchange(b'"plan_file"', b'"plan_fire"')),
        ("plan.json", exchange(b'\n "fingerprint": "', b'\n "fingerprint": "0')),
        ("plan.json", unlink),
    ],
)
def test_damaged_plan_is_named_and_remade_from_its_manifest(
    name: str,
    damage: Callable[[Path], object],
    copy: Path,
    before: Path,
    first: Manifest,
    clips: list[Clip],
) -> None:
    damage(copy / "_work" / name)
    faults = verify(copy)
    assert [fault.path.rpartition("/")[0] for fault in faults] == [
        f"_work/{name}".rpartition("/")[0]
    ]
    assert faults[0].what.startswith("is missing" if damage is unlink else "is damaged (")
    (copy / "shards" / "train-00001.tar").unlink()
    with pytest.raises(UserError) as caught:
        prepare(manifest_of(clips, train=10, eval=4), copy)
    lost = copy if name == "plan.json" and damage is unlink else copy / "_work" / name
    assert caught.value.where == str(lost)
    assert_names(caught.value.remedy, "--out")
    summary = prepare(first, copy)
    assert summary is not None
    assert summary.num_shards_built == 1
    assert files(copy) == files(before)
    assert verify(copy) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [("plan/00000.parquet", unlink), ("plan.json", cut), ("plan.json", put(b""))],
)
def test_lost_plan_is_remade_without_a_card(
    name: str,
    damage: Callable[[Path], object],
    copy: Path,
    before: Path,
    first: Manifest,
    clips: list[Clip],
) -> None:
    damage(copy / "_work" / name)
    (copy / "card.json").unlink()
    with refused(copy / "_work" / name, "manifest", type=DamagedPlanError, remedy="--out"):
        prepare(manifest_of(clips, train=10, eval=4), copy)
    summary = prepare(first, copy)
    assert summary is not None
    assert summary.num_shards_built == 0
    assert files(copy) == files(before)


def test_data_set_is_readable_without_its_plan(copy: Path) -> None:
    shutil.rmtree(copy / "_work")
    assert verify(copy) == []


def test_folder_with_other_files_is_refused(first: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "source" / "audio" / "a.wav"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"RIFF")
    with refused(tmp_path / "source", "empty", remedy="--out"):
        prepare(first, tmp_path / "source")
    with refused(path, "file", remedy="--out"):
        prepare(first, path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [path]
    with refused(path, "card.json", remedy="prepare"):
        verify(path)


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (["verify", ""], "data"),
        (["manifest", "", "--out", "m.parquet"], "source"),
        (["manifest", "x", "--out", "m.parquet", "--class-labels", ""], "--class-labels"),
        (["prepare", "m.parquet", "--out", ""], "--out"),
    ],
)
def test_empty_path_is_refused(
    command: list[str], argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ray_job.main(command)
    assert ended.value.code == 2
    assert_error_line(capsys.readouterr().err, f"argument {argument}", "empty", "s3://bucket/key")


def test_folder_as_manifest_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "Parquet", remedy="`manifest`"):
        read_manifest(str(tmp_path))


# --- the plan ----------------------------------------------------------------------------------

SPLITS = ("train", "eval", "Test_2")
PLACES = st.one_of(
    st.none(),
    st.tuples(st.sampled_from(["/a.parquet", "/b.parquet"]), st.integers(0, 2)),
)


@st.composite
def many_clips(draw: st.DrawFn) -> list[Clip]:
    """Clips of several splits, in files of their own or in row groups of Parquet files."""
    kinds = draw(st.lists(st.tuples(st.sampled_from(SPLITS), PLACES), min_size=1, max_size=80))
    clips = []
    for number, (split, location) in enumerate(kinds):
        uri, row_group = location or (f"/{number}.wav", None)
        row = None if row_group is None else number
        clips.append(
            Clip(
                id=f"clip {number}",
                uri=uri,
                labels=("dog",) * (number % 2),
                split=split,
                row_group=row_group,
                row=row,
                start_s=0.25 if number % 3 else None,
            )
        )
    return clips


@settings(max_examples=60)
@given(clips=many_clips(), clips_per_shard=st.integers(1, 30))
def test_row_groups_stay_together(clips: list[Clip], clips_per_shard: int) -> None:
    plan = make_plan(from_clips(clips, LABELS), PrepareSettings(clips_per_shard=clips_per_shard))
    for split in SPLITS:
        rows = [row for row in plan.clips.to_pylist() if row["split"] == split]
        locations = [(row["uri"], row["row_group"]) for row in rows]
        # Each row group or single file once.
        assert len(list(groupby(locations))) == len(set(locations))


@settings(max_examples=30)
@given(
    clips=many_clips(),
    clips_per_shard=st.sampled_from([1, 7, 30]),
    partition_rows=st.integers(1, 40),
)
def test_plan_does_not_depend_on_how_many_clips_are_sorted_at_once(
    clips: list[Clip], clips_per_shard: int, partition_rows: int
) -> None:
    manifest = from_clips(clips, LABELS)
    chosen = PrepareSettings(clips_per_shard=clips_per_shard)
    plan = make_plan(manifest, chosen)
    in_parts = make_plan(manifest, chosen, partition_rows=partition_rows)
    assert in_parts == plan
    assert plan.clips.equals(manifest.clips.take(pa.array(in_parts.new_rows)))
    assert in_parts.new_rows.tolist() == match(plan.clips, manifest.clips).tolist()


@settings(max_examples=30)
@given(
    clips=many_clips(),
    cuts=st.lists(st.integers(1, 79), max_size=2),
    clips_per_shard=st.sampled_from([1, 7, 30]),
)
def test_grown_plan_round_trips_and_keeps_its_shards(
    clips: list[Clip],
    cuts: list[int],
    clips_per_shard: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = str(tmp_path_factory.mktemp("plan"))
    chosen = PrepareSettings(clips_per_shard=clips_per_shard)
    plan = None
    for end in [*sorted({cut for cut in cuts if cut < len(clips)}), len(clips)]:
        manifest = from_clips(clips[:end], LABELS)
        assert planned_fingerprint(folder, manifest, chosen) is None
        grown = make_plan(manifest, chosen, plan)
        write_plan(grown, folder, manifest, plan)
        assert read_plan(folder) == grown
        assert planned_fingerprint(folder, manifest, chosen) == grown.fingerprint
        if plan:
            assert grown.specs[: len(plan.specs)] == plan.specs
            assert plan.clips.equals(grown.clips.slice(0, plan.clips.num_rows))
        plan = grown
    assert plan is not None
    assert sorted(plan.clips["id"].to_pylist()) == sorted(clip.id for clip in clips)
    assert len({spec.name for spec in plan.specs}) == len(plan.specs)
    for spec, planned in zip(plan.specs, planned_ids(plan), strict=True):
        assert 1 <= len(planned) <= clips_per_shard
        rows = read_shard_clips(folder, spec)
        assert rows["id"].to_pylist() == planned
        assert set(rows["split"].to_pylist()) == {spec.split}


@settings(max_examples=40)
@given(
    clips=many_clips(), num_first=st.integers(1, 79), remainders=st.tuples(*[st.integers(0, 9)] * 4)
)
def test_usage_of_a_grown_plan_is_that_of_comparing_it_anew(
    clips: list[Clip], num_first: int, remainders: tuple[int, ...]
) -> None:
    removed, relabelled, moved, again = ([*range(left, len(clips), 5)] for left in remainders)
    first = make_plan(from_clips(clips[:num_first], LABELS), SETTINGS)
    now = list(clips)
    for number in relabelled:
        now[number] = replace(now[number], labels=("rain",))
    for number in moved:
        now[number] = replace(now[number], start_s=7.0)
    kept = [clip for number, clip in enumerate(now) if number not in removed] or now
    manifest = from_clips(kept, LABELS)
    before = Usage(first, manifest)
    tried_again = [clips[number].id for number in again]
    grown = make_plan(manifest, SETTINGS, first, tried_again, rows_before=before.rows)
    usage = Usage(grown, manifest, before)
    anew = Usage(replace(grown, made_from=None), manifest)
    assert usage.rows.tolist() == anew.rows.tolist()
    assert usage.is_changed == anew.is_changed
    assert [usage.is_shard_changed(name) for name in grown.names] == [
        anew.is_shard_changed(name) for name in grown.names
    ]


def test_plan_of_many_shards_is_split_into_files(tmp_path: Path) -> None:
    clips = [Clip(id=str(i), uri=f"/{i}", labels=()) for i in range(150)]
    manifest = from_clips(clips, LABELS)
    plan = make_plan(manifest, PrepareSettings(clips_per_shard=1))
    write_plan(plan, str(tmp_path), manifest)
    assert sorted(path.name for path in (tmp_path / "plan").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
        "00002.parquet",
    ]
    assert read_plan(str(tmp_path)) == plan
    assert (
        read_shard_clips(str(tmp_path), plan.specs[149])["id"].to_pylist() == planned_ids(plan)[149]
    )


def test_leftovers_of_a_killed_process_are_removed_first(first: Manifest, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    left, others = shards / ".train-00001.tar.4711.0123abcd", shards / ".mine.tar"
    for path in (left, others, tmp_path / "_work" / "started" / "train-00001"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    def task_dies(row: dict[str, object], **_: object) -> None:
        assert not left.exists()
        die()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "_task", task_dies)
        with pytest.raises(KeyboardInterrupt):
            prepare(first, tmp_path)
    assert others.exists()
