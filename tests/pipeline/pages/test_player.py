"""The sound of example clips on pages: what is copied, and when there is none."""

import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from pipeline.audio.decode import decode_audio
from pipeline.audio.settings import DecodeSettings
from pipeline.dataset.prepared import open_dataset
from pipeline.manifest.manifest import Clip
from pipeline.pages.dataset_page import write_dataset_page
from pipeline.pages.player import RATE_HZ, Player
from pipeline.shards.settings import Store
from tests.support.audio import Samples, encode, tone
from tests.support.preparation import SETTINGS, preparation


def prepared(folder: Path, clips: list[Clip], store: Store = "fbank") -> Player:
    steps = preparation(folder / "data", clips, replace(SETTINGS, store=store))
    steps.build()
    steps.finish()
    return Player(open_dataset(str(folder / "data")))


def written(path: Path, samples: Samples, rate_hz: int = 16_000, container: str = "WAV") -> Clip:
    path.write_bytes(encode(samples, rate_hz, container))
    return Clip(id=path.stem, uri=str(path), labels=("dog",))


def heard(uri: str | None) -> Samples:
    """The samples behind a data URI."""
    assert uri is not None
    kind, content = uri.split(",")
    assert kind == "data:audio/webm;base64"
    data = base64.b64decode(content)
    return decode_audio(data, DecodeSettings(), sample_rate_hz=RATE_HZ).samples


def difference(samples: Samples, expected: Samples) -> float:
    """Of the middle second, relative to the expected."""
    middle = slice(RATE_HZ // 2, 3 * RATE_HZ // 2)
    return float(np.std(samples[middle] - expected[middle]) / np.std(expected[middle]))


@pytest.mark.parametrize("store", ["fbank", "audio"])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_page_plays_what_the_clip_sounds_like(tmp_path: Path, store: Store, rate_hz: int) -> None:
    copied = prepared(tmp_path, [written(tmp_path / "a.wav", tone(2.0, rate_hz), rate_hz)], store)
    samples = heard(copied.copy(0))
    assert abs(len(samples) - 2 * RATE_HZ) <= RATE_HZ // 50  # Opus has frames of 20 ms
    assert difference(samples, tone(2.0, RATE_HZ)) < 0.05


def test_same_sound_gives_the_same_bytes(tmp_path: Path) -> None:
    copied = prepared(tmp_path, [written(tmp_path / "a.wav", tone(1.0, 16_000))])
    assert copied.copy(0) == copied.copy(0)


def test_half_a_minute_is_copied_of_a_long_clip(tmp_path: Path) -> None:
    copied = prepared(
        tmp_path, [written(tmp_path / "long.flac", tone(45.0, 16_000), container="FLAC")]
    )
    assert abs(len(heard(copied.copy(0))) - 30 * RATE_HZ) <= RATE_HZ // 50


def test_no_sound_where_the_source_is_gone_or_is_not_the_clip(tmp_path: Path) -> None:
    clips = [
        written(tmp_path / f"{name}.wav", tone(2.0, 16_000)) for name in ("gone", "changed", "junk")
    ]
    stretch = replace(written(tmp_path / "stretch.wav", tone(3.0, 16_000)), start_s=1.0, end_s=2.0)
    copied = prepared(
        tmp_path, [*clips, stretch, written(tmp_path / "kept.wav", tone(1.0, 16_000))]
    )
    (tmp_path / "gone.wav").unlink()
    (tmp_path / "changed.wav").write_bytes(encode(tone(2.5, 16_000), 16_000))
    (tmp_path / "junk.wav").write_bytes(b"junk")
    ids = open_dataset(str(tmp_path / "data")).index["id"].to_pylist()
    assert [name for row, name in enumerate(ids) if copied.copy(row)] == ["kept"]


def test_storage_that_does_not_answer_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = prepared(
        tmp_path, [written(tmp_path / f"{name}.wav", tone(1.0, 16_000)) for name in ("a", "b")]
    )
    asked = []

    def give_up(_: object, path: str) -> bytes:
        asked.append(path)
        raise ConnectionResetError

    monkeypatch.setattr(storage, "with_retries", give_up)
    assert copied.copy(0) is copied.copy(1) is None
    assert len(asked) == 1


def test_sounds_stand_on_the_page_of_the_data_set(tmp_path: Path) -> None:
    prepared(tmp_path, [written(tmp_path / "a.wav", tone(1.0, 16_000))])
    page = storage.read_bytes(write_dataset_page(str(tmp_path / "data"))).decode()
    assert page.count("<audio ") == 1
    assert "media-src data:;" in page
