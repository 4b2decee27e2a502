"""The synthetic data set: its files are as documented, and its classes differ."""

import csv
import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from pipeline.manifest import synthetic
from pipeline.manifest.synthetic import (
    BROKEN,
    ENCODINGS,
    SAMPLE_RATES_HZ,
    SyntheticSettings,
    main,
    write_synthetic,
)
from pipeline.manifest.synthetic_sounds import LABELS
from tests.support.errors import assert_error_line, refused

# 35 clips meet every pair of encoding and sample rate.
SMALL = SyntheticSettings(num_train=35, num_eval=10, min_duration_s=0.5, max_duration_s=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    assert write_synthetic(folder, SMALL) == 50
    return folder


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "clips.csv").open(newline="", encoding="utf-8") as table:
        return list(csv.DictReader(table))


def usable_rows(folder: Path) -> list[dict[str, str]]:
    return [row for row in read_table(folder) if not row["id"].startswith("broken")]


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_table_lists_every_clip_once(folder: Path) -> None:
    table = read_table(folder)
    assert list(table[0]) == ["id", "path", "labels", "split"]
    assert len({row["id"] for row in table}) == len({row["path"] for row in table}) == 50
    assert Counter(row["split"] for row in usable_rows(folder)) == {"train": 35, "eval": 10}
    written = {path.relative_to(folder).as_posix() for path in (folder / "audio").iterdir()}
    assert {row["path"] for row in table} - written == {"audio/broken-00004.wav"}
    assert written <= {row["path"] for row in table}


def test_labels_are_in_the_vocabulary_and_every_split_has_all(folder: Path) -> None:
    assert (folder / "labels.txt").read_text(encoding="utf-8").splitlines() == list(LABELS)
    assert len(LABELS) == 10
    seen: dict[str, set[str]] = {"train": set(), "eval": set()}
    for row in usable_rows(folder):
        labels = row["labels"].split(";")
        assert 1 <= len(labels) == len(set(labels)) <= 3
        seen[row["split"]].update(labels)
    assert seen == {"train": set(LABELS), "eval": set(LABELS)}
    assert {label for row in read_table(folder) for label in row["labels"].split(";")} == set(
        LABELS
    )


def test_usable_clips_decode_as_promised(folder: Path) -> None:
    met = set()
    channels = set()
    for row in usable_rows(folder):
        path = folder / row["path"]
        info = soundfile.info(path)
        audio, sample_rate_hz = soundfile.read(path, always_2d=True)
        met.add((info.format, info.subtype, sample_rate_hz))
        channels.add(info.channels)
        assert path.suffix == f".{info.format.lower()}"
        assert len(audio) == info.frames
        assert 0.5 - 1e-3 <= len(audio) / sample_rate_hz <= 0.8 + 1e-3
        assert 0.2 < np.abs(audio).max() < 0.99
    assert met == {(*encoding, rate) for encoding in ENCODINGS for rate in SAMPLE_RATES_HZ}
    assert channels == {1, 2}


def test_clips_differ_in_length(folder: Path) -> None:
    durations_s = [soundfile.info(folder / row["path"]).duration for row in usable_rows(folder)]
    assert max(durations_s) - min(durations_s) > 0.2


def test_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path, SMALL)
    assert digests(tmp_path) == digests(folder)


def test_smaller_set_is_the_start_of_a_larger_one(folder: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path, replace(SMALL, num_train=10))
    smaller = {name: sha for name, sha in digests(tmp_path).items() if name.startswith("audio/")}
    assert len(smaller) == 24
    assert smaller.items() <= digests(folder).items()


def test_another_seed_gives_other_clips(folder: Path, tmp_path: Path) -> None:
    write_synthetic(tmp_path, replace(SMALL, num_train=10, num_broken=0, seed=1))
    audio = {sha for name, sha in digests(tmp_path).items() if name.startswith("audio/")}
    assert len(audio) == 20
    assert audio.isdisjoint(digests(folder).values())


def test_float_wavs_hold_no_timestamp(folder: Path) -> None:
    headers = [path.read_bytes()[:128] for path in sorted((folder / "audio").glob("*.wav"))]
    peaks = [header[header.index(b"PEAK") :] for header in headers if b"PEAK" in header]
    assert len(peaks) == 10  # 7 of the training clips, 2 of the others, and the broken one
    assert {peak[12:16] for peak in peaks} == {bytes(4)}


@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_broken_clips_cannot_be_decoded(folder: Path, number: int) -> None:
    row = next(row for row in read_table(folder) if row["id"] == f"broken-{number:05d}")
    path = folder / row["path"]
    what = BROKEN[number][0]
    assert path.exists() == (what != "listed but missing")
    if what == "every sample NaN":
        assert np.isnan(soundfile.read(path)[0]).all()
        return
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)


def test_broken_kinds_take_turns(tmp_path: Path) -> None:
    write_synthetic(tmp_path, replace(SMALL, num_train=10, num_broken=12))
    broken = [row for row in read_table(tmp_path) if row["id"].startswith("broken")]
    assert len(broken) == 12
    missing = [row["id"] for row in broken if not (tmp_path / row["path"]).exists()]
    assert missing == ["broken-00004", "broken-00009"]


def test_interrupted_set_has_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SMALL, num_train=10)
    write_synthetic(tmp_path, settings)
    num_encoded = 0
    encode = synthetic._encode

    def stop_at_the_third(*arguments: Any) -> bytes:
        nonlocal num_encoded
        num_encoded += 1
        if num_encoded == 3:
            raise RuntimeError("stopped")
        return encode(*arguments)

    monkeypatch.setattr(synthetic, "_encode", stop_at_the_third)
    with pytest.raises(RuntimeError, match="stopped"):
        write_synthetic(tmp_path, settings)
    assert not (tmp_path / "clips.csv").exists()


@pytest.mark.parametrize("number", range(len(LABELS)))
def test_first_clips_name_every_class(number: int) -> None:
    for seed in range(20):
        chosen = synthetic._choose_labels(np.random.default_rng(seed), number)
        assert LABELS[number] in chosen
        assert len(set(chosen)) == len(chosen)


def test_first_class_is_about_twice_as_frequent_as_the_last() -> None:
    rng = np.random.default_rng(0)
    counts = Counter(label for _ in range(4000) for label in synthetic._choose_labels(rng, 10))
    assert 1.5 < counts[LABELS[0]] / counts[LABELS[-1]] < 2.2
    assert min(counts, key=lambda label: counts[label]) in LABELS[-3:]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_train", 9),
        ("num_eval", 0),
        ("num_broken", -1),
        ("seed", -1),
        ("min_duration_s", 0.4),
        ("min_duration_s", float("nan")),
        ("max_duration_s", 0.9),
        ("max_duration_s", 61.0),
        ("max_duration_s", float("nan")),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(ValueError, match=f"^{field}: .*got {value}$"):
        SyntheticSettings(**arguments)


def test_unwritable_folder_is_an_explained_error(tmp_path: Path) -> None:
    with refused("s3://bucket/clips", "local"):
        write_synthetic("s3://bucket/clips", SMALL)
    (tmp_path / "file").touch()
    with refused(tmp_path / "file", "Not a directory"):
        write_synthetic(tmp_path / "file", SMALL)


def test_command_line_prints_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = ["--num-train", "11", "--num-eval", "10", "--num-broken", "1", "--seed", "3"]
    assert main([str(tmp_path / "clips"), *counts]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "22 clips of 10 classes (11 train, 10 eval, 1 broken)" in printed
    assert len(read_table(tmp_path / "clips")) == 22


def test_command_line_explains_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / "clips"), "--num-train", "3"])
    assert stopped.value.code == 2
    assert_error_line(capsys.readouterr().err, "num_train", 10, "got 3")
    assert not (tmp_path / "clips").exists()
    with pytest.raises(SystemExit) as stopped:
        main(["s3://bucket/clips"])
    assert stopped.value.code == 1
    assert_error_line(capsys.readouterr().err, "s3://bucket/clips", "local")
