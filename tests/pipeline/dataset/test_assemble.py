"""Ledger, index, card and summary of a complete data set, and reading it."""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline import storage
from pipeline.audio.rejects import check_share
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.assemble import is_intact, read_card
from pipeline.dataset.decide import decide
from pipeline.dataset.prepare_summary import PrepareSummary
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.dataset.source_rates import note_low_rates
from pipeline.manifest.manifest import Clip
from pipeline.shards.estimate import estimate
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import encode, noise, write_clips
from tests.support.errors import assert_names, refused
from tests.support.preparation import (
    LABELS,
    SETTINGS,
    Preparation,
    bad_clips,
    files,
    preparation,
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """14 good clips in two splits: 3 shards of training clips, 1 of evaluation clips."""
    folder = tmp_path_factory.mktemp("audio")
    return write_clips(folder, 10) + write_clips(folder, 4, split="eval")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> Preparation:
    prep = preparation(tmp_path_factory.mktemp("prepared"), clips)
    prep.build()
    prep.finish()
    return prep


@pytest.fixture(scope="module")
def dataset(prepared: Preparation) -> PreparedDataset:
    return open_dataset(prepared.job.output)


def test_card_describes_the_data_set(dataset: PreparedDataset, clips: list[Clip]) -> None:
    card = dataset.card
    assert (card.format_version, card.num_clips) == (3, 14)
    assert card.fbank.num_mels == dataset.num_mels == 128
    assert tuple(card.labels) == tuple(dataset.labels) == LABELS
    assert card.class_counts == {
        "eval": {"rain": 2, "dog": 2, "never": 0},
        "train": {"rain": 5, "dog": 5, "never": 0},
    }
    for split, num_clips in (("eval", 4), ("train", 10)):
        entry = card.splits[split]
        durations = [soundfile.info(clip.uri).duration for clip in clips if clip.split == split]
        assert entry.num_clips == num_clips == dataset.select(split).num_rows
        assert entry.duration_s == pytest.approx(sum(durations), abs=1e-9)
    folder = Path(dataset.path)
    for tar in card.shards:
        data = (folder / tar.name).read_bytes()
        assert (tar.size_bytes, tar.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    for name, checksum in (("index", card.index_sha256), ("rejects", card.rejects_sha256)):
        data = (folder / f"{name}.parquet").read_bytes()
        assert checksum == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(("at_once", "num_ahead"), [(1, 1), (2, 1), (3, 2)])
def test_data_set_does_not_depend_on_how_many_parts_are_read_at_once(
    prepared: Preparation, monkeypatch: pytest.MonkeyPatch, at_once: int, num_ahead: int
) -> None:
    folder = Path(prepared.job.output)
    expected = files(folder)
    for name in ("index.parquet", "rejects.parquet", "card.json"):
        (folder / name).unlink()
    monkeypatch.setattr("pipeline.dataset.assemble._PARTS_AT_ONCE", at_once)
    monkeypatch.setattr("pipeline.dataset.assemble._PARTS_AHEAD", num_ahead)
    prepared.finish()
    assert files(folder) == expected


@pytest.mark.parametrize("split", ["train", "eval"])
def test_mean_and_deviation_cover_every_stored_number(dataset: PreparedDataset, split: str) -> None:
    rows = [i for i, own in enumerate(dataset.index["split"].to_pylist()) if own == split]
    fbanks = [dataset.read_fbank(row) for row in rows]
    stored = np.concatenate([numbers.ravel() for numbers in fbanks]).astype(np.float64)
    entry = dataset.card.splits[split]
    assert entry.num_frames == sum(len(numbers) for numbers in fbanks)
    assert entry.mean == pytest.approx(stored.mean(), rel=1e-12)
    assert entry.std == pytest.approx(stored.std(), rel=1e-12)
    if split == "train":
        assert (dataset.card.mean, dataset.card.std) == (entry.mean, entry.std)


def test_each_clip_is_read_at_its_offset(dataset: PreparedDataset) -> None:
    members: dict[str, bytes] = {}
    for entry in dataset.card.shards:
        with tarfile.open(Path(dataset.path) / entry.name) as tar:
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


def test_splits_and_folds_are_selected_or_refused(tmp_path: Path, clips: list[Clip]) -> None:
    folded = [replace(clip, fold=1 + number % 2) for number, clip in enumerate(clips[:10])]
    prep = preparation(tmp_path, folded)
    prep.build()
    prep.finish()
    dataset = open_dataset(str(tmp_path))
    assert set(dataset.select("train", fold=1)["id"].to_pylist()) == {c.id for c in folded[::2]}
    others = dataset.select("train", except_folds=[1])["id"].to_pylist()
    assert set(others) == {clip.id for clip in folded[1::2]}
    with refused(tmp_path, "test", remedy="train"):
        dataset.select("test")
    with refused(tmp_path, "train", 3, [1, 2]):
        dataset.select("train", fold=3)
    unfolded = str(tmp_path / "unfolded")
    prep = preparation(Path(unfolded), [replace(clip, fold=0) for clip in clips[:10]])
    prep.build()
    prep.finish()
    with refused(unfolded, "train", 3, "none"):
        open_dataset(unfolded).select("train", fold=3)


def test_statistics_cover_all_clips_without_a_training_split(
    tmp_path: Path, clips: list[Clip]
) -> None:
    prep = preparation(tmp_path, [replace(clip, split=f"x{clip.split}") for clip in clips])
    prep.build()
    prep.finish()
    card = open_dataset(str(tmp_path)).card
    sums = storage.read_table(f"{tmp_path}/index.parquet")["fbank_sum"].to_pylist()
    num_values = 128 * sum(entry.num_frames for entry in card.splits.values())
    assert card.mean == math.fsum(sums) / num_values


def test_too_many_rejects_leave_a_ledger_but_no_card(tmp_path: Path, clips: list[Clip]) -> None:
    missing = [Clip(id=f"no {i}", uri=f"/none/{i}.wav", labels=("dog",)) for i in range(5)]
    bad = bad_clips(tmp_path / "bad")
    few = [bad["decode: the file is empty"], bad["fbank: shorter than one 25 ms frame"]]
    prep = preparation(tmp_path / "out", [*clips, *missing, *few])
    prep.build()
    reasons = ("fetch: not found (5)", "decode: the file is empty (1)")
    ledger = tmp_path / "out" / "rejects.parquet"
    with refused("", 7, 21, 0.3, *reasons, ledger, "--retry-rejects", remedy="--max-reject-share"):
        prep.finish(max_reject_share=0.3)
    assert set(files(tmp_path / "out")) == {
        "rejects.parquet",
        *(f"shards/{spec.name}.tar" for spec in prep.plan.specs),
    }
    with refused(tmp_path / "out", "card.json", remedy="prepare"):
        open_dataset(str(tmp_path / "out"))
    assert read_card(str(tmp_path / "out")) is None
    # With a larger share the same parts are enough: nothing is built again.
    assert prep.finished() == {spec.name for spec in prep.plan.specs}
    assert prep.finish(max_reject_share=1 / 3).num_clips_built == 0
    assert open_dataset(str(tmp_path / "out")).card.rejects.num == 7


def test_one_file_that_is_back_among_many_missing_is_found(
    tmp_path: Path, clips: list[Clip]
) -> None:
    missing = [
        Clip(id=f"no {i}", uri=str(tmp_path / f"{i}.wav"), labels=("dog",)) for i in range(500)
    ]
    prep = preparation(tmp_path / "out", [*clips, *missing], replace(SETTINGS, clips_per_shard=100))
    prep.build()
    prep.finish()
    assert decide(prep.manifest, prep.job, retry_rejects=False) is None
    Path(missing[321].uri).write_bytes(Path(clips[0].uri).read_bytes())
    work = decide(prep.manifest, prep.job, retry_rejects=False)
    assert work is not None
    (spec,) = work.unfinished
    rows = work.usage.rows_in(spec.name).tolist()
    assert len(clips) + 321 in rows


@pytest.mark.parametrize("num_rejects", range(1, 100))
def test_reject_share_equal_to_the_limit_is_allowed(num_rejects: int) -> None:
    limit = num_rejects / 100
    check_share({"a": num_rejects}, 100, max_share=limit, ledger="ledger")
    with refused("", num_rejects + 1, 100, "ledger"):
        check_share({"a": num_rejects + 1}, 100, max_share=limit, ledger="ledger")


def test_data_set_without_clips_is_refused(tmp_path: Path) -> None:
    prep = preparation(tmp_path / "out", list(bad_clips(tmp_path / "bad").values()))
    prep.build()
    with refused("", "7 of 7"):
        prep.finish(max_reject_share=1.0)
    assert not (tmp_path / "out" / "card.json").exists()


def test_only_leftovers_of_an_earlier_plan_are_removed(tmp_path: Path, clips: list[Clip]) -> None:
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


def test_card_is_written_last(
    tmp_path: Path, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    with storage.new_file(f"{tmp_path}/any") as file:
        local_file = type(file)
    commit: Callable[[storage.NewFile], None] = local_file.commit

    def record(file: storage.NewFile) -> None:
        order.append(file.path.removeprefix(f"{tmp_path}/"))
        commit(file)

    monkeypatch.setattr(local_file, "commit", record)
    prep = preparation(tmp_path, clips[:3])
    prep.build()
    prep.finish()
    assert order == [
        "_work/plan/00000.parquet",
        "_work/plan.json",
        "_work/started/train-00000",
        "shards/train-00000.tar",
        "_work/parts/train-00000.parquet",
        "rejects.parquet",
        "index.parquet",
        "prepare_summary.json",
        "card.json",
    ]


def test_missing_or_truncated_files_are_noticed_in_a_listing(
    tmp_path: Path, clips: list[Clip]
) -> None:
    output = str(tmp_path / "out")
    assert read_card(output) is None
    prep = preparation(tmp_path / "out", clips)
    prep.build()
    prep.finish()
    card = read_card(output)
    assert card is not None
    assert is_intact(card, output)
    for name in ("index.parquet", "rejects.parquet", "shards/train-00001.tar"):
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.unlink()
        assert not is_intact(card, output)
        path.write_bytes(content)
        assert is_intact(card, output)
    path.write_bytes(content[:-1])
    assert not is_intact(card, output)
    assert prep.finished() == {"train-00000", "train-00002", "eval-00000"}


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing more", None])
def test_shard_with_a_damaged_part_is_unfinished(
    tmp_path: Path, clips: list[Clip], content: bytes | None
) -> None:
    prep = preparation(tmp_path, clips)
    prep.build()
    part = tmp_path / "_work" / "parts" / "train-00001.parquet"
    part.write_bytes(part.read_bytes()[:-20] if content is None else content)
    assert prep.finished() == {"train-00000", "train-00002", "eval-00000"}


def test_fingerprint_covers_the_whole_card(dataset: PreparedDataset) -> None:
    card = storage.read_json(f"{dataset.path}/card.json")
    assert card == dataset.card.to_json()
    del card["fingerprint"]
    canonical = json.dumps(card, sort_keys=True)
    assert dataset.card.fingerprint == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "marker", "values", "remedy"),
    [
        ("run", "run.json", ["a run", "run.json"], "`prepare`"),
        ("esc50.toml", "", ["a recipe"], "--data"),
        ("clips.parquet", "", ["a table"], "`prepare`"),
        ("nothing", "", ["card.json"], "`prepare`"),
    ],
)
def test_what_is_given_in_place_of_a_data_set_is_named(
    tmp_path: Path, name: str, marker: str, values: list[str], remedy: str
) -> None:
    path = tmp_path / name
    if marker:
        path.mkdir()
        (path / marker).touch()
    elif name != "nothing":
        path.touch()
    with refused(path, *values, remedy=remedy):
        open_dataset(str(path))


def test_data_set_of_another_format_is_refused(tmp_path: Path) -> None:
    storage.write_json(f"{tmp_path}/card.json", {"format_version": 99})
    with refused("card.json", 99, "2 and 3"):
        open_dataset(str(tmp_path))


def test_summary_counts_what_this_run_built(tmp_path: Path, clips: list[Clip]) -> None:
    prep = preparation(tmp_path, clips)
    prep.build()
    summary = prep.finish(built=["train-00001", "eval-00000"])
    assert (summary.num_shards, summary.num_shards_built) == (4, 2)
    assert summary.num_clips_built == 7
    assert summary.clips_per_s == 3.5
    sizes = [path.stat().st_size for path in (tmp_path / "shards").iterdir()]
    assert summary.size_bytes == sum(sizes)
    assert storage.read_json(f"{tmp_path}/prepare_summary.json")["num_clips_built"] == 7


def test_odd_files_and_lost_levels_are_noted(tmp_path: Path) -> None:
    usual = encode(noise(0.5, 16_000))
    no_length = usual[:40] + bytes(4) + usual[44:]
    opposite = encode(np.stack([noise(0.5, 16_000), -noise(0.5, 16_000)], axis=1))
    clips = []
    for name, data in {"usual": usual, "no length": no_length, "opposite": opposite}.items():
        (tmp_path / name).write_bytes(data)
        clips.append(Clip(id=name, uri=str(tmp_path / name), labels=("dog",)))

    def prepare(output: str, **settings: Any) -> tuple[PrepareSummary, dict[str, dict[str, Any]]]:
        decode = DecodeSettings(**settings)
        prepared = preparation(tmp_path / output, clips, PrepareSettings(decode=decode))
        prepared.build()
        summary = prepared.finish()
        return summary, {
            row["id"]: row for row in open_dataset(str(tmp_path / output)).index.read().to_pylist()
        }

    summary, rows = prepare("mean")
    assert (summary.num_repaired_clips, summary.num_faded_clips) == (1, 1)
    assert {name: row["repaired"] for name, row in rows.items()} == {
        "usual": None,
        "no length": "no length in its header",
        "opposite": None,
    }
    assert {name: row["file_level_dbfs"] for name, row in rows.items()} == pytest.approx(
        dict.fromkeys(rows, -20.0), abs=0.2
    )
    assert rows["opposite"]["level_dbfs"] < -80
    summary, rows = prepare("left", channel="left", strict=True)
    assert (summary.num_rejects, summary.num_repaired_clips, summary.num_faded_clips) == (1, 0, 0)
    assert rows["opposite"]["level_dbfs"] == pytest.approx(-20.0, abs=0.2)


def test_clips_of_a_lower_rate_are_counted_and_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = []
    for name, rate_hz in (("phone", 8_000), ("tape", 11_025), ("disc", 44_100), ("usual", 16_000)):
        (tmp_path / name).write_bytes(encode(noise(0.5, rate_hz), rate_hz))
        clips.append(Clip(id=name, uri=str(tmp_path / name), labels=("dog",)))

    def prepare(chosen: list[Clip], output: str) -> tuple[PrepareSummary, PreparedDataset]:
        prepared = preparation(tmp_path / output, chosen, PrepareSettings())
        prepared.build()
        return prepared.finish(), open_dataset(str(tmp_path / output))

    summary, dataset = prepare(clips, "mixed")
    assert dataset.card.low_rates == {"8000": 1, "11025": 1}
    assert summary.file_rates == {"8000": 1, "11025": 1, "16000": 1, "44100": 1}
    assert_names(summary.low_rate_note, "2 of 4", "8,000 to 11,025 Hz", "16,000", "4,000 Hz")
    with caplog.at_level("INFO"):
        note_low_rates(dataset)
    assert caplog.messages == [f"{dataset.path}: {summary.low_rate_note}"]
    summary, dataset = prepare(clips[2:], "full")
    assert (dataset.card.low_rates, summary.low_rate_note) == ({}, "")
    assert summary.file_rates == {"16000": 1, "44100": 1}
    assert "low_rates" not in storage.read_json(f"{dataset.path}/card.json")
    summary, _ = prepare(clips[:1], "low")
    assert_names(summary.low_rate_note, "1 clip", "8,000 Hz")


def test_files_that_decoders_stumble_over_need_a_single_run(
    audio_faults: Path, tmp_path: Path
) -> None:
    clips = [
        Clip(
            id=f"{path.name} to {end_s}",
            uri=str(path),
            labels=("dog",),
            start_s=start_s,
            end_s=end_s,
        )
        for path in sorted(audio_faults.iterdir())
        for start_s, end_s in ((None, None), (0.05, 0.09))
    ]
    prepared = preparation(tmp_path, clips, PrepareSettings(clips_per_shard=1))
    prepared.build()
    summary = prepared.finish()
    rejects = storage.read_table(str(tmp_path / "rejects.parquet")).to_pylist()
    assert [row["id"] for row in rejects] == ["01_truncated.flac to None"]
    assert summary.num_clips == len(clips) - 1
    sample = estimate(prepared.plan, PrepareSettings(), len(clips))
    assert sum(sample.sampled_rejects.values()) == 1
