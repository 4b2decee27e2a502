"""Data sets that store audio: prepared, verified, read, and mixed as waveforms on the device."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import webdataset
from rich.table import Table

import ray_job
from pipeline import storage
from pipeline.audio.rejects import RejectError
from pipeline.audio.stored_audio import decode_flac, encode_flac, to_16_bits, to_waveform
from pipeline.commands.summaries import prepare_summary
from pipeline.dataset.card import ClippedAudio
from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import SettingValueError
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.files import write_manifest
from pipeline.manifest.manifest import Clip, Manifest, from_clips
from pipeline.pages.dataset_page import write_dataset_page
from pipeline.shards.estimate import estimate
from pipeline.shards.plan import make_plan
from pipeline.shards.settings import PrepareSettings
from tests.support.audio import encode, noise, tone
from tests.support.errors import refused
from tests.support.plain_clips import augmented_audio
from tests.support.prepared import TINY, tiny_recipe
from tests.support.runs import assert_same_run
from tests.support.without_ray import do_without_ray, prepare, verify
from trainer.data.augment import augment_batch, mix_waveforms, normalise, raw_log_mel
from trainer.data.augment_draws import draw_augmentations, needs_partner
from trainer.data.batch import Batch
from trainer.data.clips import ClipSet, select_clips
from trainer.data.epoch_plan import plan_epoch
from trainer.data.loader import Loader
from trainer.data.settings import AugmentSettings, LoaderSettings
from trainer.run.history import is_finished
from trainer.run.run_progress import RunProgress
from trainer.training.loop import train
from trainer.training.world import World

AUDIO = PrepareSettings(clips_per_shard=8, store="audio")
FBANKS = replace(AUDIO, store="fbank")
AUGMENT = AugmentSettings(frequency_mask=8, time_mask=8, noise=True, roll_frames=5)
NORMS = {"mean": -4.27, "std": 4.57}
NUM_FRAMES = 64
LABELS = ("dog", "rain")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Clips of 33 to 94 frames and some samples more, not around 0, as they will be stored."""
    folder = tmp_path_factory.mktemp("audio")
    made = []
    for number in range(28):
        path = folder / f"{number}.wav"
        samples = noise(0.35 + 0.0221 * number, 16_000, seed=number) + 0.01 * (number % 3)
        path.write_bytes(encode(samples))
        split = "eval" if number % 7 in (0, 3) else "train"
        made.append(Clip(id=f"{number}", uri=str(path), labels=(LABELS[number % 2],), split=split))
    return made


@pytest.fixture(scope="module")
def manifest(clips: list[Clip]) -> Manifest:
    return from_clips(clips, LABELS)


@pytest.fixture(scope="module")
def dataset(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("audio-set")
    prepare(manifest, folder, AUDIO)
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def fbank_dataset(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("fbank-set")
    prepare(manifest, folder, FBANKS)
    return open_dataset(str(folder))


# --- 16 bits and FLAC --------------------------------------------------------------------------


def test_16_bit_samples_survive_the_round_trip() -> None:
    samples = np.random.default_rng(0).integers(-32_768, 32_767, 5_000).astype(np.int16)
    data = encode_flac(samples, 16_000)
    assert np.array_equal(decode_flac(data, 5_000), samples)
    assert np.array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], samples)
    assert np.array_equal(to_16_bits(to_waveform(samples))[0], samples)


def test_samples_beyond_full_scale_are_clipped_and_counted() -> None:
    waveform = np.zeros(40, dtype=np.float32)
    waveform[:7] = [1.0, -1.0, 1.5, -1e30, 1e30, 0.6 / 32_768, -2.4 / 32_768]
    samples, num_clipped = to_16_bits(waveform)
    assert samples[:7].tolist() == [32_767, -32_768, 32_767, -32_768, 32_767, 1, -2]
    assert num_clipped == 3
    with pytest.raises(RejectError, match="10 %"):
        to_16_bits(1_000 * tone(0.1, 16_000))


@pytest.mark.parametrize(
    "damaged",
    [
        lambda data: b"",
        lambda data: data[:-200],
        lambda data: data[:3_000] + b"?" + data[3_001:],
        lambda data: b"?" + data[1:],
        lambda data: data[:20] + b"\xff" + data[21:],
    ],
)
def test_damaged_flac_is_refused(damaged: Any) -> None:
    data = encode_flac(to_16_bits(noise(1.0, 16_000))[0], 16_000)
    assert len(decode_flac(data, 16_000)) == 16_000
    with pytest.raises(EOFError):
        decode_flac(damaged(data), 16_000)
    with pytest.raises(EOFError, match="15999"):
        decode_flac(data, 15_999)


# --- the data set ------------------------------------------------------------------------------


def test_index_locates_the_stored_audio(clips: list[Clip], dataset: PreparedDataset) -> None:
    uris = {clip.id: clip.uri for clip in clips}
    rows = dataset.index.read().to_pylist()
    assert len(rows) == 28
    for row in rows:
        tar = Path(dataset.path, row["shard"]).read_bytes()
        flac = tar[row["offset_bytes"] : row["offset_bytes"] + row["size_bytes"]]
        samples, rate_hz = soundfile.read(io.BytesIO(flac), dtype="int16")
        assert rate_hz == 16_000
        assert np.array_equal(samples, soundfile.read(uris[row["id"]], dtype="int16")[0])


# webdataset leaves the closing of the tars it opened to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file <_io.BufferedReader name='.*tar'>")
def test_webdataset_reads_stored_audio(dataset: PreparedDataset) -> None:
    path = f"{dataset.path}/shards/eval-00000.tar"
    samples = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False))
    assert {key for sample in samples for key in sample if key[0] != "_"} == {"json", "flac"}
    assert len(samples) == 8
    assert all(soundfile.info(io.BytesIO(sample["flac"])).frames for sample in samples)


def test_index_and_card_equal_those_of_stored_fbanks(
    dataset: PreparedDataset, fbank_dataset: PreparedDataset
) -> None:
    """For 16-bit sources they are equal, except for what is stored and where."""
    own = {"fingerprint", "plan_fingerprint", "shards", "index_sha256", "store", "clipped"}
    cards = [either.card.to_json() for either in (dataset, fbank_dataset)]
    shared = [{name: card[name] for name in card if name not in own} for card in cards]
    assert shared[0] == shared[1]
    assert dataset.card.store == "audio"
    assert "store" not in cards[1]
    location = ["offset_bytes", "size_bytes", "xxh3"]
    columns = dataset.index.read().drop_columns([*location, "num_clipped"])
    assert columns.equals(fbank_dataset.index.read().drop_columns(location))
    assert (fbank_dataset.audio_fbank, dataset.audio_fbank) == (None, FbankSettings())
    for row in (0, 27):
        assert np.array_equal(dataset.read_fbank(row), fbank_dataset.read_fbank(row))


def test_clipping_is_counted(tmp_path: Path) -> None:
    loud = 0.5 * tone(0.5, 16_000)
    loud[100:103] = 1.2
    (tmp_path / "loud.wav").write_bytes(encode(loud, subtype="FLOAT"))
    (tmp_path / "broken.wav").write_bytes(encode(80 * loud, subtype="FLOAT"))
    clips = [Clip(id=name, uri=f"{tmp_path}/{name}.wav", labels=()) for name in ("loud", "broken")]
    summary = prepare(from_clips(clips, LABELS), tmp_path / "out", AUDIO)
    made = open_dataset(f"{tmp_path}/out")
    assert made.card.clipped == ClippedAudio(num_clips=1, num_samples=3)
    assert made.index["num_clipped"].to_pylist() == [3]
    assert made.card.rejects.by_reason == {
        "decode: more than 10 % of its samples are beyond full scale": 1
    }
    assert summary is not None
    assert summary.num_clipped_clips == 1
    table = prepare_summary(summary).renderables[1]
    assert isinstance(table, Table)
    values = list(table.columns[1].cells)
    assert values[0] == "1 (0.5 s)"
    assert "kB), 1 built by this run" in str(values)
    page = Path(write_dataset_page(f"{tmp_path}/out")).read_text()
    assert "3 samples in 1 clip<" in page


def test_damaged_audio_is_named_and_rebuilt(
    dataset: PreparedDataset, manifest: Manifest, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(dataset.path, tmp_path / "out"))
    assert verify(copy) == []
    assert prepare(manifest, copy, AUDIO) is None
    row = dataset.index.read().slice(3, 1).to_pylist()[0]
    shard = copy / row["shard"]
    whole = shard.read_bytes()
    middle = row["offset_bytes"] + row["size_bytes"] // 2
    shard.write_bytes(whole[:middle] + b"???" + whole[middle + 3 :])
    faults = [fault.what for fault in verify(copy)]
    assert faults == [
        f"clip {row['id']}: cannot be read (does not give "
        f"{FbankSettings().samples_in(row['duration_s'])} samples of one channel)",
        "does not match the card's checksum",
    ]
    damaged = open_dataset(str(copy))
    with refused(shard, f"clip '{row['id']}'", remedy="verify"):
        damaged.read_fbank(3)
    with refused(shard, f"clip '{row['id']}'", remedy=True):
        evaluation(select_clips(damaged, row["split"]))
    assert prepare(manifest, copy, AUDIO) is not None
    assert shard.read_bytes() == whole


def test_audio_and_fbanks_are_not_mixed_in_a_data_set(
    dataset: PreparedDataset, fbank_dataset: PreparedDataset, manifest: Manifest
) -> None:
    with refused(dataset.path, "store was audio, now fbank", remedy="--out"):
        prepare(manifest, dataset.path, FBANKS)
    with refused(fbank_dataset.path, "store was fbank, now audio", remedy="--out"):
        prepare(manifest, fbank_dataset.path, AUDIO)
    # Data sets from before there was a choice have no word of it in their plan.
    plan = storage.read_json(f"{fbank_dataset.path}/_work/plan.json")
    assert set(plan["basis"]["settings"]) == {"fbank", "decode", "clips_per_shard"}
    with refused("store", "fbank", "audio", "'wav'", type=SettingValueError):
        replace(AUDIO, store="wav")  # type: ignore[arg-type]


def test_command_line_prepares_the_same_data_set(
    dataset: PreparedDataset,
    manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    do_without_ray(monkeypatch)
    write_manifest(f"{tmp_path}/clips.parquet", manifest)
    options = ["--out", f"{tmp_path}/out", "--store", "audio", "--clips-per-shard", "8"]
    assert ray_job.main(["prepare", f"{tmp_path}/clips.parquet", *options]) == 0
    assert open_dataset(f"{tmp_path}/out").card == dataset.card
    assert ray_job.main(["verify", f"{tmp_path}/out"]) == 0
    assert f"{tmp_path}/out" in capsys.readouterr().out


def test_estimated_size_is_close(manifest: Manifest, dataset: PreparedDataset) -> None:
    size_bytes = sum(tar.size_bytes for tar in dataset.card.shards)
    # The data set ends four tars, the estimate one, each with up to 10 KB of zeros.
    assert (
        abs(estimate(make_plan(manifest, AUDIO), AUDIO, 28).written_bytes - size_bytes) < 4 * 10_240
    )
    assert (
        abs(estimate(make_plan(manifest, FBANKS), FBANKS, 28).written_bytes - size_bytes)
        > 4 * 10_240
    )


# --- training ----------------------------------------------------------------------------------


def evaluation(clips: ClipSet, **settings: Any) -> torch.Tensor:
    """The model's inputs in evaluation, `[N, T, F]`."""
    loader = Loader(clips, LoaderSettings(**settings), num_frames=NUM_FRAMES)
    return torch.cat(
        [
            normalise(raw_log_mel(one.x, one.lengths, None, one.audio_fbank), **NORMS)
            for one in loader.evaluation_batches(rank=0, world_size=1, batch_size=5)
        ]
    )


def training(
    clips: ClipSet,
    augment: AugmentSettings = AUGMENT,
    *,
    rank: int = 0,
    world_size: int = 1,
    **settings: Any,
) -> list[Batch]:
    """An epoch's batches, no longer in the loader's memory."""
    plan = plan_epoch(
        len(clips), None, seed=3, epoch=1, batch_size=6, rank=rank, world_size=world_size
    )
    loader = Loader(clips, LoaderSettings(**settings), num_frames=NUM_FRAMES)
    return [replace(one, x=one.x.clone()) for one in loader.training_batches(plan, augment)]


def test_evaluation_inputs_equal_those_of_stored_fbanks(
    dataset: PreparedDataset, fbank_dataset: PreparedDataset
) -> None:
    for split in ("train", "eval"):
        x = evaluation(select_clips(dataset, split))
        other = evaluation(select_clips(fbank_dataset, split))
        torch.testing.assert_close(x, other, atol=1e-3, rtol=0)
        padding = (other == other[:, :, :1]).all(dim=2)
        assert padding.any()
        assert torch.equal(x[padding], other[padding])


def test_rounding_to_16_bits_barely_changes_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encode(noise(1.0, 44_100), 44_100, subtype="FLOAT"))
    manifest = from_clips([Clip(id="a", uri=f"{tmp_path}/a.wav", labels=("dog",))], LABELS)
    x, other = [
        evaluation(select_clips(open_dataset(f"{tmp_path}/{settings.store}"), "train"))
        for settings in (AUDIO, FBANKS)
        if prepare(manifest, tmp_path / settings.store, settings)
    ]
    # The most where a bin happens to be faint.
    torch.testing.assert_close(x, other, atol=5e-3, rtol=0)
    assert (x - other).abs().mean() < 2e-4


@pytest.mark.parametrize("crop", ["first", "random"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_batches_equal_clips_computed_one_by_one(
    clips: list[Clip], dataset: PreparedDataset, crop: Any, share: float
) -> None:
    chosen = select_clips(dataset, "train")
    uris = {clip.id: clip.uri for clip in clips}
    waveforms = [torch.from_numpy(soundfile.read(uris[i], dtype="float32")[0]) for i in chosen.ids]
    plan = plan_epoch(len(chosen), None, seed=3, epoch=1, batch_size=6, rank=0, world_size=1)
    position, lengths = 0, set()
    for batch in training(chosen, replace(AUGMENT, crop=crop, mixup_share=share)):
        assert batch.draws is not None
        num_clips = len(batch.targets)
        assert len(batch.x) == num_clips + needs_partner(batch.draws).sum()
        x = augment_batch(
            batch.x,
            batch.lengths,
            batch.draws,
            batch.audio_fbank,
            noise=batch.noise,
            **NORMS,
        )
        for row in range(num_clips):
            own, partner = plan.order[position], plan.partners[position]
            expected = augmented_audio(
                waveforms[own], waveforms[partner], batch.draws, row, num_frames=NUM_FRAMES, **NORMS
            )
            torch.testing.assert_close(x[row], expected, atol=1e-4, rtol=0)
            lengths.add(len(waveforms[own]) > len(waveforms[partner]))
            position += 1
    assert position == 20
    assert lengths == {False, True}


def test_mixing_adds_nothing_past_the_end_of_the_clip() -> None:
    samples = torch.tensor([[100, 300, 0, 0], [50, 50, 70, 90]], dtype=torch.int16)
    draws = draw_augmentations(
        AUGMENT, seed=0, epoch=1, positions=[0], num_mels=128, num_frames=NUM_FRAMES
    )
    draws = replace(draws, mixup_lambda=np.array([0.75]))
    out = mix_waveforms(samples, torch.tensor([2, 4]), draws) * 32_768
    # (-100, 100) and (-15, -15) of the partner without its mean 65: mixed, then without the mean.
    torch.testing.assert_close(out, torch.tensor([[-75.0, 75.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=r"^x: .*\[1, 4\]"):
        mix_waveforms(samples[:1], torch.tensor([2]), draws)


def assert_same_batches(batches: list[Batch], other: list[Batch]) -> None:
    for batch, expected in zip(batches, other, strict=True):
        for name in ("x", "lengths", "targets"):
            assert torch.equal(getattr(batch, name), getattr(expected, name))


@pytest.mark.parametrize(
    "settings", [{"threads": 1, "batches_ahead": 1, "cache_mb": 0}, {"threads": 4}]
)
def test_loader_settings_do_not_change_the_batches(
    dataset: PreparedDataset, settings: dict[str, Any]
) -> None:
    clips = select_clips(dataset, "train")
    assert_same_batches(training(clips, **settings), training(clips))


def test_ranks_split_the_same_clips(dataset: PreparedDataset) -> None:
    clips, augment = select_clips(dataset, "train"), replace(AUGMENT, mixup_share=0.0)
    ranks = [training(clips, augment, rank=rank, world_size=2) for rank in range(2)]
    for whole, *shares in zip(training(clips, augment), *ranks, strict=True):
        for name in ("x", "lengths", "targets"):
            parts = [getattr(one, name)[one.clip_weights > 0] for one in shares]
            assert torch.equal(torch.cat(parts), getattr(whole, name))


def test_stored_audio_trains_from_a_bucket(s3: str, dataset: PreparedDataset) -> None:
    for path in Path(dataset.path).rglob("*"):
        if path.is_file() and "_work" not in path.parts:
            name = path.relative_to(dataset.path).as_posix()
            storage.write_bytes(f"{s3}/data/{name}", path.read_bytes())
    remote = select_clips(open_dataset(f"{s3}/data"), "train")
    assert_same_batches(training(remote, cache_mb=0), training(select_clips(dataset, "train")))


def test_resumed_run_on_audio_equals_an_uninterrupted_one(
    dataset: PreparedDataset, tmp_path: Path
) -> None:
    recipe = tiny_recipe(
        train={"epochs": 2, "log_every_steps": 1, "checkpoint_every_s": 0},
        augment={**TINY["augment"], "crop": "random"},
    )
    whole, run = str(tmp_path / "whole"), str(tmp_path / "run")
    train(recipe, dataset, whole, world=World())

    def stop(progress: RunProgress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, dataset, run, world=World(), report=stop)
    assert not is_finished(run)
    train(recipe, dataset, run, world=World())
    assert_same_run(run, whole)
