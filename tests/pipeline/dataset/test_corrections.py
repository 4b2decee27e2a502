"""What a person corrects in a manifest is cheap: the index and card are new, and little else."""

import json
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import ray_job
from pipeline import storage
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.files import write_manifest
from pipeline.manifest.layouts.read import read_source
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.shards import build
from pipeline.shards.fetch import fetch_ahead
from pipeline.shards.settings import PrepareSettings, Store
from tests.support.audio import encode, noise, write_clips
from tests.support.errors import assert_names, refused
from tests.support.preparation import LABELS, SETTINGS, bad_clips, contents, die, files
from tests.support.without_ray import compact, do_without_ray, prepare, tars, verify


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """13 good clips in two splits, then one of an empty file and one whose file is missing."""
    folder = tmp_path_factory.mktemp("audio")
    bad = bad_clips(folder / "bad")
    rejected = [bad["decode: the file is empty"], bad["fetch: not found"]]
    return write_clips(folder, 9) + write_clips(folder, 4, split="eval") + rejected


@pytest.fixture(scope="module")
def before(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set before any correction; nobody writes to it."""
    folder = tmp_path_factory.mktemp("before") / "out"
    prepare(manifest_of(clips), folder)
    return folder


@pytest.fixture
def copy(before: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(before, tmp_path / "out"))


def manifest_of(clips: Sequence[Clip], labels: Sequence[str] = LABELS) -> Manifest:
    return from_clips(clips, labels)


def changed(clips: Sequence[Clip], numbers: Sequence[int], **changes: Any) -> list[Clip]:
    return [
        replace(clip, **changes) if number in numbers else clip for number, clip in enumerate(clips)
    ]


def corrected(
    manifest: Manifest, folder: Path, settings: PrepareSettings = SETTINGS, **options: Any
) -> PrepareSummary:
    """Prepare, check the result as a whole, and that a further run has nothing to do."""
    summary = prepare(manifest, folder, settings, **options)
    assert summary is not None
    assert verify(folder) == []
    assert prepare(manifest, folder, settings) is None
    dataset = open_dataset(str(folder))
    assert tuple(dataset.labels) == manifest.labels
    wanted = {row["id"]: row for row in manifest.clips.to_pylist()}
    rejected = set(pq.read_table(folder / "rejects.parquet")["id"].to_pylist())
    rows = dataset.index.read().to_pylist()
    assert {row["id"] for row in rows} | rejected == set(wanted)
    for row in rows:
        for name in ("uri", "labels", "split", "fold", "common"):
            assert row[name] == wanted[row["id"]][name]
    return summary


@pytest.fixture
def no_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if audio is fetched, or its storage asked."""
    monkeypatch.setattr(build, "fetch_ahead", die)
    monkeypatch.setattr("pipeline.dataset.decide.storage.check_readable", die)


# --- labels, splits, folds, classes ---------------------------------------------------------------

CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": ("never", "dog")}, "labels of 2 clips changed"),
    "no labels": ({"labels": ()}, "labels of 2 clips changed"),
    "split": ({"split": "eval"}, "split of 2 clips changed"),
    "new split": ({"split": "test"}, "split of 2 clips changed"),
    "fold": ({"fold": 3}, "fold of 2 clips changed"),
}


@pytest.mark.usefixtures("no_audio")
@pytest.mark.parametrize("kind", CHANGES)
def test_what_is_no_audio_changes_index_and_card_only(
    kind: str, clips: list[Clip], copy: Path, before: Path
) -> None:
    changes, words = CHANGES[kind]
    shards = tars(copy)
    summary = corrected(manifest_of(changed(clips, (2, 5), **changes)), copy)
    assert tars(copy) == shards
    assert summary.num_shards_built == 0
    assert summary.changes == f"{words}: index and card written anew, no audio read"
    card = open_dataset(str(copy)).card
    assert card.corrections is not None
    assert (card.corrections.num_outdated, card.corrections.num_unused) == (2, 0)
    # Taken back, all is as it was.
    assert corrected(manifest_of(clips), copy).changes == summary.changes
    assert files(copy) == files(before)
    assert open_dataset(str(copy)).card.corrections is None


@pytest.mark.usefixtures("no_audio")
def test_classes_and_their_order_change_the_card(
    clips: list[Clip], copy: Path, before: Path
) -> None:
    summary = corrected(manifest_of(clips, LABELS[::-1]), copy)
    assert summary.changes.startswith("order of the classes changed: ")
    counts = open_dataset(str(copy)).card.class_counts["eval"]
    assert list(counts) == list(LABELS[::-1])
    summary = corrected(manifest_of(clips, (*LABELS, "new")), copy)
    assert summary.changes.startswith("3 classes became 4: ")
    renamed = [
        replace(clip, labels=tuple("hound" if name == "dog" else name for name in clip.labels))
        for clip in clips
    ]
    summary = corrected(manifest_of(renamed, ("rain", "hound", "never")), copy)
    assert "4 classes became 3" in summary.changes
    corrected(manifest_of(clips), copy)
    assert files(copy) == files(before)


@pytest.mark.usefixtures("no_audio")
def test_statistics_of_a_split_follow_its_clips(clips: list[Clip], copy: Path) -> None:
    old = open_dataset(str(copy)).card
    corrected(manifest_of(changed(clips, (0, 1, 2), split="eval")), copy)
    new = open_dataset(str(copy)).card
    assert (old.splits["train"].num_clips, new.splits["train"].num_clips) == (9, 6)
    assert (old.splits["eval"].num_clips, new.splits["eval"].num_clips) == (4, 7)
    assert new.mean == new.splits["train"].mean != old.mean


@pytest.mark.usefixtures("no_audio")
def test_labels_of_a_rejected_clip_change_nothing_else(clips: list[Clip], copy: Path) -> None:
    """The labels of a rejected clip are nowhere but in the manifest."""
    summary = corrected(manifest_of(changed(clips, (13,), labels=("rain",))), copy)
    assert summary.changes == ""


def test_damage_to_a_corrected_data_set_is_found_and_repaired(
    clips: list[Clip], copy: Path
) -> None:
    manifest = manifest_of(changed(clips, (2, 5), labels=("never",), split="eval")[1:])
    corrected(manifest, copy)
    whole = files(copy)
    for number, old, new in ((0, b'"duration_s"', b'"duration_x"'), (1, b'"id"', b'"ix"')):
        path = copy / "shards" / f"train-0000{number}.tar"
        path.write_bytes(path.read_bytes().replace(old, new, 1))
    faults = verify(copy)
    assert {fault.path for fault in faults} == {f"shards/train-0000{n}.tar" for n in (0, 1)}
    assert all(any(text in fault.what for text in ("checksum", "JSON")) for fault in faults)
    assert prepare(manifest, copy) is not None
    assert files(copy) == whole
    assert verify(copy) == []


def test_outdated_json_is_a_fault_unless_the_card_says_so(clips: list[Clip], copy: Path) -> None:
    path = copy / "shards" / "train-00000.tar"
    path.write_bytes(path.read_bytes().replace(b'"split": "train"', b'"split": "trait"', 1))
    assert any("JSON differs" in fault.what for fault in verify(copy))


# --- clips are removed ----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_audio")
def test_removed_clips_leave_the_index_and_stay_in_the_tars(
    clips: list[Clip], copy: Path, before: Path
) -> None:
    shards = tars(copy)
    summary = corrected(manifest_of(clips[2:]), copy)
    assert tars(copy) == shards
    assert summary.changes.startswith("2 clips removed: ")
    card = open_dataset(str(copy)).card
    assert card.corrections is not None
    assert (card.num_clips, card.corrections.num_unused, card.corrections.num_outdated) == (
        11,
        2,
        0,
    )
    with tarfile.open(copy / "shards" / "train-00000.tar") as tar:
        assert len(tar.getnames()) == 2 * card.shards[1].num_clips
    corrected(manifest_of(clips), copy)
    assert files(copy) == files(before)


@pytest.mark.usefixtures("no_audio")
def test_whole_split_is_removed(clips: list[Clip], copy: Path) -> None:
    corrected(manifest_of([clip for clip in clips if clip.split == "train"]), copy)
    assert set(open_dataset(str(copy)).card.splits) == {"train"}


@pytest.mark.usefixtures("no_audio")
def test_removed_rejects_leave_the_ledger(clips: list[Clip], copy: Path) -> None:
    summary = corrected(manifest_of(clips[:-1]), copy)
    assert summary.changes.startswith("1 clip removed: ")
    card = open_dataset(str(copy)).card
    assert (card.rejects.num, card.num_clips) == (1, 13)
    corrected(manifest_of(clips[:-2]), copy, max_reject_share=0.0)


@pytest.mark.usefixtures("no_audio")
def test_too_many_rejects_are_removed_from_the_manifest(
    clips: list[Clip], copy: Path, before: Path
) -> None:
    (copy / "card.json").unlink()
    with refused("", "2 of 15"):
        prepare(manifest_of(clips), copy, max_reject_share=0.1)
    corrected(manifest_of(clips[:-2]), copy, max_reject_share=0.1)


# --- other audio ----------------------------------------------------------------------------------


def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of clips that are tried from now on."""
    tried: list[str] = []

    def record(clips: list[Clip], *arguments: Any) -> Any:
        tried.extend(clip.id for clip in clips)
        return fetch_ahead(clips, *arguments)

    monkeypatch.setattr(build, "fetch_ahead", record)
    return tried


def test_only_a_reject_with_another_path_is_tried(
    clips: list[Clip], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, shards = built(monkeypatch), tars(copy)
    manifest = manifest_of(changed(clips, (14,), uri=clips[0].uri))
    summary = corrected(manifest, copy)
    assert tried == [clips[14].id]
    assert summary.changes == "other audio for 1 clip: audio of 1 clip read, 4 shards kept"
    assert {name: tars(copy)[name] for name in shards} == shards
    assert (summary.num_clips, summary.num_rejects) == (14, 1)


def test_clip_with_another_path_or_stretch_is_built_again(
    clips: list[Clip], copy: Path, before: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, index = built(monkeypatch), open_dataset(str(copy)).index.read()
    corrected(manifest_of(changed(clips, (3,), end_s=0.2)), copy)
    assert tried == [clips[3].id]
    rows = {row["id"]: row for row in open_dataset(str(copy)).index.read().to_pylist()}
    assert rows[clips[3].id]["duration_s"] == pytest.approx(0.2)
    # And back: the shard has it still.
    tried.clear()
    corrected(manifest_of(clips), copy)
    assert tried == []
    assert open_dataset(str(copy)).index.read().equals(index)


def test_run_of_rejects_alone_is_repeated_after_a_correction(
    clips: list[Clip], tmp_path: Path
) -> None:
    lost = [replace(clip, uri=f"/nowhere{clip.uri}") for clip in clips[:13]]
    with refused("", "13 of 13"):
        prepare(manifest_of(lost), tmp_path / "out")
    prepare(manifest_of(clips[2:9]), tmp_path / "out")
    prepare(manifest_of(clips[2:9]), tmp_path / "at once")
    assert files(tmp_path / "out") == files(tmp_path / "at once")
    work = tmp_path / "out" / "_work"
    assert len(list((work / "parts").iterdir())) == len(tars(tmp_path / "out"))
    assert verify(tmp_path / "out") == []


def test_all_corrections_at_once(
    clips: list[Clip], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = built(monkeypatch)
    new = write_clips(tmp_path / "new", 2, split="more")
    rows = changed(changed(clips, (14,), uri=clips[0].uri), (4,), fold=2)[1:]
    summary = corrected(manifest_of([*rows, *new], (*LABELS, "x")), copy)
    assert_names(summary.changes, "fold of 1 clip", "1 clip removed", "2 clips added")
    assert_names(summary.changes, "other audio for 1 clip", "3 classes became 4")
    assert sorted(tried) == sorted([clips[14].id, *(clip.id for clip in new)])


# --- limits -------------------------------------------------------------------------------------


def limited(**limits: Any) -> PrepareSettings:
    return replace(SETTINGS, decode=DecodeSettings(**limits))


@pytest.fixture(scope="module")
def some_long(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """5 short clips, 3 of 1, 2 and 3 s, and one of an empty file."""
    folder = tmp_path_factory.mktemp("long")
    long = [write_clips(folder, 1, split=f"of{s}s", duration_s=s) for s in (1, 2, 3)]
    return [*clips[:5], *(part[0] for part in long), clips[13]]


def test_only_clips_rejected_by_a_limit_are_tried_when_it_is_raised(
    some_long: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, manifest = tmp_path / "out", manifest_of(some_long)
    prepare(manifest, out, replace(limited(max_duration_s=0.9), store="audio"))
    reasons = open_dataset(str(out)).card.rejects.by_reason
    assert reasons["decode: longer than 0.9 s; --max-duration-s raises this limit"] == 3
    tried, shards = built(monkeypatch), tars(out)
    raised = replace(limited(max_duration_s=2.5), store="audio")
    summary = corrected(manifest, out, settings=raised)
    assert sorted(tried) == sorted(clip.id for clip in some_long[5:8])
    assert {name: tars(out)[name] for name in shards} == shards
    assert summary.changes.startswith("higher limit for 3 clips rejected before: audio of 3 ")
    assert (summary.num_clips, summary.num_rejects) == (7, 2)
    # A damaged shard is built with the limit it had.
    whole = files(out)
    shutil.rmtree(out / "shards")
    prepare(manifest, out, raised)
    assert files(out) == whole
    # No label is outdated.
    assert read_source(f"{out}/shards", "webdataset").clips.num_rows == 7
    # Once more, and back.
    tried.clear()
    corrected(manifest, out, settings=replace(raised, decode=DecodeSettings(max_duration_s=3.5)))
    assert tried == [some_long[7].id]
    with refused(out, "max_duration_s", 3.5, 2.5, remedy="--max-duration-s 3.5"):
        prepare(manifest, out, raised)


def test_limit_that_concerns_no_clip_may_be_raised(
    clips: list[Clip], copy: Path, before: Path
) -> None:
    assert prepare(manifest_of(clips), copy, limited(max_duration_s=700.0)) is None
    assert prepare(manifest_of(clips), copy) is None
    assert files(copy) == files(before)


def test_limit_on_files_may_be_raised_after_a_run_that_failed(
    some_long: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, out = manifest_of(some_long[:-1]), tmp_path / "out"
    with refused("", "3 of 8", "--max-file-mb"):
        prepare(manifest, out, limited(max_file_bytes=30_000), max_reject_share=0.1)
    tried = built(monkeypatch)
    corrected(manifest, out, settings=limited(max_file_bytes=40_000), max_reject_share=0.3)
    corrected(manifest, out, settings=limited(max_file_bytes=900_000), max_reject_share=0.1)
    assert len(tried) == 3 + 2
    assert open_dataset(str(out)).card.rejects.num == 0


def test_low_rates_are_those_of_the_clips_that_are_left(clips: list[Clip], tmp_path: Path) -> None:
    phones = []
    for number in range(3):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(encode(noise(0.5, 8_000), 8_000))
        phones.append(Clip(id=path.stem, uri=str(path), labels=("dog",)))
    out = tmp_path / "out"

    def low_rates() -> dict[str, int]:
        return open_dataset(str(out)).card.low_rates

    prepare(manifest_of(phones), out)
    assert low_rates() == {"8000": 3}
    rows = [*phones[:1], replace(phones[1], uri=clips[0].uri)]
    corrected(manifest_of(rows), out)
    assert low_rates() == {"8000": 1}
    compact(manifest_of(rows), out)
    assert low_rates() == {"8000": 1}


# --- compact ------------------------------------------------------------------------------------


def compacted(manifest: Manifest, folder: Path) -> PrepareSummary:
    """Compact, and check the result as a whole, and that a further run has nothing to do."""
    index = open_dataset(str(folder)).index.read().sort_by("id")
    summary = compact(manifest, folder)
    assert summary is not None
    assert verify(folder) == []
    dataset = open_dataset(str(folder))
    assert dataset.card.corrections is None
    moved = ["shard", "offset_bytes"]
    assert dataset.index.read().sort_by("id").drop_columns(moved).equals(index.drop_columns(moved))
    assert prepare(manifest, folder) is None
    assert compact(manifest, folder) is None
    names = {row["shard"] for row in dataset.index.read().to_pylist()}
    assert {f"shards/{name}.tar" for name in tars(folder)} == names
    parts = {path.stem for path in (folder / "_work" / "parts").iterdir()}
    assert parts >= {name.removeprefix("shards/").removesuffix(".tar") for name in names}
    assert len(list((folder / "_work" / "plan").iterdir())) == 1
    return summary


@pytest.mark.usefixtures("no_audio")
def test_only_shards_with_corrections_are_rewritten(clips: list[Clip], copy: Path) -> None:
    before = tars(copy)
    assert compact(manifest_of(clips), copy) is None
    shard_of = {row["id"]: row["shard"] for row in open_dataset(str(copy)).index.read().to_pylist()}
    affected = {Path(shard_of[clips[number].id]).stem for number in (0, 9)}
    rows = changed(clips, (9,), labels=("never",), fold=2)[1:]
    corrected(manifest_of(rows), copy)
    summary = compacted(manifest_of(rows), copy)
    assert_names(summary.changes, "2 shards", "1 clip removed", "1 clip written anew")
    kept = {name: time for name, time in tars(copy).items() if name in before}
    assert kept == {name: time for name, time in before.items() if name not in affected}
    assert summary.fetched_bytes > 0
    with tarfile.open(copy / "shards" / "eval-00001.tar") as tar:
        documents = [
            json.load(part)
            for m in tar
            if m.name.endswith(".json") and (part := tar.extractfile(m))
        ]
    assert [row["labels"] for row in documents if row["id"] == clips[9].id] == [["never"]]


@pytest.mark.parametrize("store", ["fbank", "audio"])
def test_rewritten_shards_are_those_that_building_gives(
    store: Store, clips: list[Clip], tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", replace(SETTINGS, store=store)
    prepare(manifest_of(clips), out, settings)
    rows = changed(clips, (2, 5, 6), split="eval", labels=("never",))[1:]
    corrected(manifest_of(rows), out, settings)
    assert compact(manifest_of(rows), out, settings) is not None
    whole = files(out)
    assert {"shards/eval-00001.tar", "shards/train-00004.tar"} <= set(whole)
    shutil.rmtree(out / "shards")
    prepare(manifest_of(rows), out, settings)
    assert files(out) == whole
    assert verify(out) == []


def test_shards_are_listed_only_if_their_labels_are_those_of_the_index(
    clips: list[Clip], tmp_path: Path
) -> None:
    out, settings = tmp_path / "out", replace(SETTINGS, store="audio")
    prepare(manifest_of(clips), out, settings)
    assert read_source(f"{out}/shards", "webdataset").clips.num_rows == 13
    manifest = manifest_of(changed(clips, (2, 5), labels=("never",))[1:])
    corrected(manifest, out, settings)
    shard = next((out / "shards").iterdir())
    for source in (out, out / "shards", shard):
        with refused(out / "card.json", 2, 1, remedy="prepare --compact"):
            read_source(str(source), "webdataset")
    compact(manifest, out, settings)
    listed = read_source(f"{out}/shards", "webdataset").clips.to_pylist()
    index = {row["id"]: row["labels"] for row in open_dataset(str(out)).index.read().to_pylist()}
    assert {row["id"]: row["labels"] for row in listed} == index


def test_compacted_data_set_is_corrected_and_grows_again(
    clips: list[Clip], copy: Path, tmp_path: Path
) -> None:
    manifest = manifest_of(clips[:8])  # no split `eval`, no rejects
    corrected(manifest, copy)
    compacted(manifest, copy)
    assert {name.rpartition("-")[0] for name in tars(copy)} == {"train"}
    corrected(manifest_of(changed(clips[1:], (0, 3), split="eval")), copy)
    manifest = manifest_of(changed(clips[1:], (0, 3), fold=7))
    corrected(manifest, copy)
    compacted(manifest, copy)


def test_damage_is_not_copied(clips: list[Clip], copy: Path) -> None:
    manifest = manifest_of(clips[1:])
    corrected(manifest, copy)
    row = open_dataset(str(copy)).index.read().to_pylist()[-1]
    clip = next(number for number, clip in enumerate(clips) if clip.id == row["id"])
    manifest = manifest_of(changed(clips, (clip,), labels=("never",))[1:])
    corrected(manifest, copy)
    path = copy / row["shard"]
    content = bytearray(path.read_bytes())
    content[row["offset_bytes"]] ^= 1
    path.write_bytes(content)
    with refused(path, row["id"], remedy="verify"):
        compact(manifest, copy)
    assert verify(copy) != []
    prepare(manifest, copy)
    compacted(manifest, copy)


def test_buckets_give_the_same_as_folders(clips: list[Clip], s3: str, tmp_path: Path) -> None:
    manifest = manifest_of(changed(clips, (2, 5), labels=("never",), split="eval")[1:])
    written = []
    for output in (f"{tmp_path}/out", f"{s3}/out"):
        prepare(manifest_of(clips), output)
        prepare(manifest, output)
        written.append(contents(output))
        compact(manifest, output)
        written.append(contents(output))
        assert verify(output) == []
        assert prepare(manifest, output) is None
    assert written[0] == written[2]
    assert written[1] == written[3]


# --- kills ----------------------------------------------------------------------------------------


with storage.new_file(f"{tempfile.gettempdir()}/any") as any_file:
    LOCAL_FILE = type(any_file)


@contextmanager
def killed_at(number: int, *, after: bool) -> Iterator[None]:
    """End the run before or after its numbered change of a file."""
    left = [None] * number

    def deadly(change: Callable[..., None]) -> Callable[..., None]:
        def maybe(*arguments: Any) -> None:
            is_last = not left
            if is_last and not after:
                raise KeyboardInterrupt
            change(*arguments)
            if is_last:
                raise KeyboardInterrupt
            left.pop()

        return maybe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOCAL_FILE, "commit", deadly(LOCAL_FILE.commit))
        patch.setattr(storage, "remove", deadly(storage.remove))
        yield


def check_kills(
    before: Path, folder: Path, old: Callable[[Path], Any], new: Callable[[Path], Any]
) -> None:
    """Kill `new` at each change of a file: the data set is old or new or none, never mixed."""
    whole = Path(shutil.copytree(before, folder / "whole"))
    new(whole)
    contents = {"old": files(before), "new": files(whole)}
    states = Counter[str]()
    for after in (False, True):
        for number in count():
            copy = Path(shutil.copytree(before, folder / f"{after}-{number}"))
            try:
                with killed_at(number, after=after):
                    new(copy)
                break
            except KeyboardInterrupt:
                states[state_of(copy, contents)] += 1
            undone = Path(shutil.copytree(copy, folder / f"{after}-{number}-undone"))
            new(copy)
            assert files(copy) == contents["new"], (after, number)
            assert verify(copy) == []
            old(undone)
            rows = [
                open_dataset(str(folder)).index.read().sort_by("id") for folder in (undone, before)
            ]
            moved = ["shard", "offset_bytes"]  # if a compaction was finished
            assert rows[0].drop_columns(moved).equals(rows[1].drop_columns(moved))
            assert verify(undone) == []
    assert states["old"]
    assert states["none"]


def state_of(copy: Path, contents: dict[str, dict[str, bytes]]) -> str:
    if not (copy / "card.json").exists():
        with refused(copy, "card.json", remedy="prepare"):
            open_dataset(str(copy))
        return "none"
    assert verify(copy) == []
    card = (copy / "card.json").read_bytes()
    [state] = [name for name, whole in contents.items() if whole["card.json"] == card]
    assert (copy / "index.parquet").read_bytes() == contents[state]["index.parquet"]
    return state


@pytest.mark.slow
def test_killed_compaction_is_finished_by_the_next_run(
    clips: list[Clip], before: Path, tmp_path: Path
) -> None:
    manifest = manifest_of(changed(clips, (2, 5), labels=("never",), split="eval")[1:])
    start = Path(shutil.copytree(before, tmp_path / "corrected"))
    prepare(manifest, start)

    def prepare_and_compact(folder: Path) -> None:
        prepare(manifest, folder)
        compact(manifest, folder)

    check_kills(start, tmp_path, lambda folder: prepare(manifest, folder), prepare_and_compact)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["labels", "everything"])
def test_killed_correction_is_finished_by_the_next_run(
    kind: str, clips: list[Clip], before: Path, tmp_path: Path
) -> None:
    rows = changed(clips, (2, 5), labels=("never",), split="eval", fold=2)
    if kind == "everything":
        rows = [
            *changed(rows, (14,), uri=clips[0].uri)[1:],
            *write_clips(tmp_path / "new", 2, split="more"),
        ]
    check_kills(
        before,
        tmp_path,
        lambda folder: prepare(manifest_of(clips), folder),
        lambda folder: prepare(manifest_of(rows), folder),
    )


def test_old_data_set_is_there_until_the_corrected_one_can_be_written(
    clips: list[Clip], copy: Path, before: Path
) -> None:
    manifest = manifest_of(changed(clips, (2, 5), labels=("never",))[1:])

    def stopped_at(name: str, step: Callable[..., object]) -> dict[str, bytes]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, die)
            with pytest.raises(KeyboardInterrupt):
                step(manifest, copy)
        return files(copy)

    assert stopped_at("pipeline.dataset.assemble.count_reasons", prepare) == files(before)
    prepare(manifest, copy)
    is_corrected = files(copy)
    assert stopped_at("pipeline.dataset.compact._rewrite_all", compact) == is_corrected
    compacted(manifest, copy)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(
    clips: list[Clip], copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    do_without_ray(monkeypatch)
    write_manifest(str(tmp_path / "m.parquet"), manifest_of(clips))
    options = ["--clips-per-shard", "4", "--max-reject-share", "0.5"]
    return ["prepare", str(tmp_path / "m.parquet"), "--out", str(copy), *options]


def test_command_says_what_is_corrected_and_a_dry_run_what_would_be(
    clips: list[Clip],
    copy: Path,
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def last_line(*options: str) -> str:
        assert ray_job.main([*command, *options]) == 0
        return capsys.readouterr().out.splitlines()[-1]

    last_line()
    whole = files(copy)
    assert last_line("--plan") == f"{copy}: already complete"
    write_manifest(command[1], manifest_of(changed(clips, (2, 5), labels=())[1:]))
    outcome = (
        "labels of 2 clips changed, 1 clip removed: index and card written anew, no audio read; "
        "--compact removes what is left of them"
    )
    assert last_line("--plan") == f"{copy}: planned: {outcome}; nothing was written"
    assert files(copy) == whole
    assert last_line() == f"{copy}: {outcome}"
    assert last_line() == f"{copy}: already complete"
    planned = f"{copy}: already complete; shards to compact: 2"
    assert last_line("--plan", "--compact") == planned
    done = "2 shards rewritten, no audio read: 1 clip removed, "
    assert last_line("--compact").startswith(f"{copy}: {done}")
    assert last_line("--compact") == f"{copy}: already complete, no shard to compact"
    [new] = write_clips(tmp_path / "new", 1, split="new")
    write_manifest(command[1], manifest_of([*clips[1:], new]))
    outcome = "labels of 2 clips changed, 1 clip added: audio of 1 clip read, 4 shards kept"
    assert last_line("--plan") == f"{copy}: planned: {outcome}; nothing was written"
    assert ray_job.main([*command, "--plan", "--json-logs"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["outcome"], planned["num_clips"]) == (outcome, 1)
    assert last_line() == f"{copy}: {outcome}"


def test_missing_page_is_drawn_and_a_failure_is_a_warning(
    copy: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = copy / "dataset.html"
    assert ray_job.main(command) == 0
    assert capsys.readouterr().out == f"{copy}: already complete\n{page}\n"
    drawn = page.read_bytes()
    page.unlink()
    page.mkdir()  # blocks the page, like a read-only disk
    (copy / "card.json").unlink()
    for _ in range(2):
        assert ray_job.main(command) == 0
        captured = capsys.readouterr()
        assert str(page) not in captured.out
        [warning] = [line for line in captured.err.splitlines() if "warning: " in line]
        assert_names(warning, str(page), "complete", "`prepare`")
    page.rmdir()
    assert ray_job.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert len(page.read_bytes()) == pytest.approx(len(drawn), rel=0.01)
