"""Tags of recordings: the scores of evaluation, over windows, broken files noted."""

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline import storage
from pipeline.audio.decode import decode_audio
from pipeline.audio.sandbox import DecoderProcess
from pipeline.audio.settings import DecodeSettings
from pipeline.manifest.manifest import Clip
from tests.support.audio import encode
from tests.support.errors import refused
from tests.support.preparation import bad_clips
from tests.support.tagging import Trained, sound, train_on_audio, write_recording, write_sounds
from trainer.model.ast import AST
from trainer.scores.predictions import read_predictions
from trainer.tagging import segments
from trainer.tagging.assemble import RECORDINGS, REJECTS, WINDOWS, TagCard
from trainer.tagging.gpu_faults import GpuError
from trainer.tagging.job import Tags, tag_here, tag_in_memory, tag_recordings
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.model import Tagger
from trainer.tagging.settings import KeepSettings, TagSettings, WindowSettings
from trainer.tagging.source import list_recordings

ALL = TagSettings(keep=KeepSettings(top=3, all_scores=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_audio(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def tagger(trained: Trained) -> Tagger:
    return load_tagger(ModelChoice(path=trained.run))


def tag(tagger: Tagger, source: Path, output: Path, settings: TagSettings = ALL) -> TagCard:
    with DecoderProcess() as decoder:
        return tag_recordings(
            tagger,
            list_recordings(str(source)),
            str(source),
            str(output),
            settings,
            batch_size=4,
            tag_parts=tag_here(tagger, decoder),
        )


def tag_clips(tagger: Tagger, clips: list[Clip]) -> Tags:
    return tag_in_memory(tagger, clips, ALL, batch_size=5)


def read(output: Path, name: str = WINDOWS) -> pa.Table:
    return storage.read_table(str(output / name))


def files_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir() if path.suffix == ".parquet"}


@pytest.mark.parametrize("store", ["fbank", "audio"])
@pytest.mark.parametrize("buckets", [(), (40,)])
def test_short_clips_get_the_scores_of_evaluation(
    tmp_path: Path, store: str, buckets: tuple[int, ...]
) -> None:
    changes = {"sampler": {"bucket_frames": list(buckets)}} if buckets else {}
    trained = train_on_audio(tmp_path, store=store, **changes)  # type: ignore[arg-type]
    expected = read_predictions(trained.run, "eval")
    tagger = load_tagger(ModelChoice(path=trained.run))
    clips = [clip for clip in trained.clips if clip.split == "eval"]
    tags = tag_clips(tagger, clips)
    assert tags.recordings["num_windows"].to_pylist() == [1] * len(clips)
    by_id = dict(zip(expected.ids, expected.scores, strict=True))
    for row in tags.windows.to_pylist():
        of_class = dict(zip(row["labels"], row["scores"], strict=True))
        scores = [of_class[label] for label in tagger.labels]
        np.testing.assert_allclose(scores, by_id[row["recording"]], rtol=0, atol=1e-6)


def test_events_are_in_the_windows_that_hold_them(tagger: Tagger, tmp_path: Path) -> None:
    events = [("rain", 1.3), ("never", 2.0), ("dog", 1.7)]
    write_recording(tmp_path / "events.flac", events, container="FLAC")
    tag(tagger, tmp_path / "events.flac", tmp_path / "tags")
    windows = read(tmp_path / "tags").to_pylist()
    times = [(row["start_s"], row["end_s"]) for row in windows]
    assert times[:2] == [(0.0, 0.64), (0.32, 0.96)]
    assert times[-1][1] == 5.0
    for label, start_s, end_s in (("rain", 0, 1.3), ("never", 1.3, 3.3), ("dog", 3.3, 5.0)):
        inside = [row for row in windows if start_s <= row["start_s"] and row["end_s"] <= end_s]
        assert len(inside) >= 2
        assert all(row["labels"][0] == label for row in inside)
    (recording,) = read(tmp_path / "tags", RECORDINGS).to_pylist()
    assert recording["duration_s"] == 5.0
    assert recording["num_windows"] == len(windows)
    highest = max(row["scores"][row["labels"].index("dog")] for row in windows)
    assert recording["max_scores"][recording["max_labels"].index("dog")] == highest
    mean = np.mean([row["scores"][row["labels"].index("dog")] for row in windows])
    assert recording["mean_scores"][recording["mean_labels"].index("dog")] == pytest.approx(mean)


def test_segments_do_not_change_the_tags(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sounds(tmp_path / "audio", 5)
    events = [("rain", 4.0), ("dog", 5.0)]
    write_recording(tmp_path / "audio" / "m-long.wav", events)
    tag(tagger, tmp_path / "audio", tmp_path / "one")
    monkeypatch.setattr(segments, "SEGMENT_WINDOWS", 7)
    tag(tagger, tmp_path / "audio", tmp_path / "many")
    one, many = (files_of(tmp_path / name) for name in ("one", "many"))
    assert one.keys() == many.keys()
    for name in (WINDOWS, RECORDINGS):
        few, more = read(tmp_path / "one", name), read(tmp_path / "many", name)
        assert few.num_rows == more.num_rows
        for row, other in zip(few.to_pylist(), more.to_pylist(), strict=True):
            assert row.keys() == other.keys()
            assert row["recording"] == other["recording"]
            key = "scores" if name == WINDOWS else "mean_scores"
            np.testing.assert_allclose(row[key], other[key], atol=1e-6)


def test_killed_and_resumed_gives_the_same_bytes(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sounds(tmp_path / "audio", 5)
    write_recording(tmp_path / "audio" / "m-long.wav", [("rain", 4.0), ("dog", 5.0)])
    monkeypatch.setattr(segments, "SEGMENT_WINDOWS", 7)
    score, num_scored, dies_at = Tagger.score, 0, 0

    def counted(*arguments: object, **options: object) -> object:
        nonlocal num_scored
        num_scored += 1
        if num_scored == dies_at:
            raise KeyboardInterrupt
        return score(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Tagger, "score", counted)
    tag(tagger, tmp_path / "audio", tmp_path / "whole")
    # Of batches of 4: one of the two first clips, two of each 7 windows of the long recording.
    num_whole, num_scored, dies_at = num_scored, 0, 5
    with pytest.raises(KeyboardInterrupt):
        tag(tagger, tmp_path / "audio", tmp_path / "resumed")
    num_scored, dies_at = 0, 0
    tag(tagger, tmp_path / "audio", tmp_path / "resumed")
    assert num_scored == num_whole - 3
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_broken_files_are_in_the_ledger(tagger: Tagger, tmp_path: Path) -> None:
    broken = bad_clips(tmp_path / "audio")
    write_sounds(tmp_path / "audio", 2)
    card = tag(tagger, tmp_path / "audio", tmp_path / "tags")
    expected = {
        # Not a file at all, and no limit on the length.
        reason: 1
        for reason in broken
        if "not found" not in reason and "longer than" not in reason
    }
    assert card.rejects == expected
    assert card.num_recordings == 2 + 1 + 1  # the long one, and the beginning of the cut one
    ledger = read(tmp_path / "tags", REJECTS).to_pylist()
    assert {f"{row['stage']}: {row['reason']}": 1 for row in ledger} == expected
    (cut,) = [row for row in read(tmp_path / "tags", RECORDINGS).to_pylist() if row["fault"]]
    assert cut["fault"] == "cut short or damaged"
    assert cut["duration_s"] == pytest.approx((9_000 - 44) / 2 / 16_000)


def test_finished_tags_are_only_read(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sounds(tmp_path / "audio", 2)
    card = tag(tagger, tmp_path / "audio", tmp_path / "tags")
    monkeypatch.setattr(Tagger, "score", None)
    assert tag(tagger, tmp_path / "audio", tmp_path / "tags") == card


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"windows": WindowSettings(length_s=0.5)}, "--window"),
        ({"windows": WindowSettings(hop_s=0.5)}, "--hop"),
        ({"keep": KeepSettings(top=2, all_scores=True)}, "--top"),
        ({"keep": KeepSettings(top=3)}, "--scores"),
        ({"channel": "left"}, "--channel"),
    ],
)
def test_tags_of_other_settings_are_refused(
    tagger: Tagger, tmp_path: Path, changes: dict[str, object], what: str
) -> None:
    write_sounds(tmp_path / "audio", 2)
    tag(tagger, tmp_path / "audio", tmp_path / "tags")
    with refused(str(tmp_path / "tags"), what, remedy="another --out"):
        tag(tagger, tmp_path / "audio", tmp_path / "tags", replace(ALL, **changes))  # type: ignore[arg-type]


def test_other_recordings_are_refused(tagger: Tagger, tmp_path: Path) -> None:
    write_sounds(tmp_path / "audio", 2)
    tag(tagger, tmp_path / "audio", tmp_path / "tags")
    write_sounds(tmp_path / "audio", 3)
    with refused(str(tmp_path / "tags"), "recordings in the source", remedy="another --out"):
        tag(tagger, tmp_path / "audio", tmp_path / "tags")


def test_folder_with_other_files_is_refused(tagger: Tagger, tmp_path: Path) -> None:
    write_sounds(tmp_path / "audio", 2)
    with refused(str(tmp_path / "audio"), "holds no tags", remedy="another --out"):
        tag(tagger, tmp_path / "audio", tmp_path / "audio")


def test_tags_above_a_threshold(tagger: Tagger, tmp_path: Path) -> None:
    write_sounds(tmp_path / "audio", 3)
    keep = KeepSettings(threshold=0.6)
    tag(tagger, tmp_path / "audio", tmp_path / "tags", TagSettings(keep=keep))
    rows = read(tmp_path / "tags").to_pylist()
    assert all(score >= np.float32(0.6) for row in rows for score in row["scores"])
    assert any(len(row["scores"]) < 3 for row in rows)


def test_embeddings_and_all_scores(tagger: Tagger, tmp_path: Path) -> None:
    write_sounds(tmp_path / "audio", 2)
    keep = KeepSettings(all_scores=True, embeddings=True)
    tag(tagger, tmp_path / "audio", tmp_path / "tags", TagSettings(keep=keep))
    table = read(tmp_path / "tags")
    assert table.schema.field("embedding").type == pa.list_(pa.float16())
    row = table.to_pylist()[0]
    assert len(row["embedding"]) == 192
    scores = dict(zip(row["labels"], row["scores"], strict=True))
    expected = [scores[label] for label in tagger.labels]
    np.testing.assert_allclose(row["all_scores"], expected, atol=1e-3)


def test_times_of_a_stretch_are_those_of_the_file(tagger: Tagger, tmp_path: Path) -> None:
    write_recording(tmp_path / "long.wav", [("rain", 3.0), ("dog", 3.0)])
    (clip,) = [
        replace(one, start_s=3.0, end_s=4.0)
        for one in list_recordings(str(tmp_path / "long.wav")).clips_of()
    ]
    tags = tag_clips(tagger, [clip])
    rows = tags.windows.to_pylist()
    assert [(row["start_s"], row["end_s"]) for row in rows] == [
        (3.0, 3.64),
        (3.32, 3.96),
        (pytest.approx(3.36), 4.0),
    ]
    assert {row["labels"][0] for row in rows} == {"dog"}
    whole = decode_audio(
        (tmp_path / "long.wav").read_bytes(), DecodeSettings(), sample_rate_hz=16_000
    ).samples
    first = tagger.score([whole[48_000 : 48_000 + 10_240]]).scores[0]
    np.testing.assert_allclose(rows[0]["scores"][0], first.max(), atol=1e-6)


def test_longer_windows_than_the_model_was_trained_on(trained: Trained, tmp_path: Path) -> None:
    tagger = load_tagger(ModelChoice(path=trained.run, window_s=2.0))
    (warning,) = tagger.warnings
    assert "trained on 0.64 s" in warning
    (tmp_path / "a.wav").write_bytes(encode(sound("dog", 3.0)))
    settings = TagSettings(windows=WindowSettings(length_s=2.0), keep=KeepSettings(top=1))
    tag(tagger, tmp_path / "a.wav", tmp_path / "tags", settings)
    times = [(row["start_s"], row["end_s"]) for row in read(tmp_path / "tags").to_pylist()]
    assert times == [(0.0, 2.0), (1.0, 3.0)]


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3"])
def test_file_that_is_not_read_whole_gets_the_same_tags(
    tagger: Tagger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    path = tmp_path / "audio" / f"long.{container.lower()}"
    path.parent.mkdir()
    subtype = "MPEG_LAYER_III" if container == "MP3" else "PCM_16"
    write_recording(path, [("rain", 2.0), ("dog", 2.3)], container=container, subtype=subtype)
    tag(tagger, path.parent, tmp_path / "read")
    monkeypatch.setattr(segments, "WHOLE_BYTES", 1_000)
    tag(tagger, path.parent, tmp_path / "opened")
    assert files_of(tmp_path / "opened") == files_of(tmp_path / "read")
    assert str(path) not in map(os.path.realpath, Path("/proc/self/fd").iterdir())


def test_gpu_that_fails_is_named_in_one_line(
    tagger: Tagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = [np.zeros(16_000, np.float32)]
    host = socket.gethostname()

    def fail(error: RuntimeError) -> Callable[..., None]:
        def embed(model: AST, x: Tensor) -> None:
            raise error

        return embed

    broken = torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with X\n", 719)
    monkeypatch.setattr(AST, "embed", fail(broken))
    with refused(host, "unspecified launch failure", type=GpuError, remedy=True) as caught:
        tagger.score(window)
    assert "Compile" not in str(caught.value)
    monkeypatch.setattr(AST, "embed", fail(torch.OutOfMemoryError("Tried to allocate 9 GiB")))
    with refused(host, remedy="--batch-size"):
        tagger.score(window)
