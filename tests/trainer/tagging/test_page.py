"""The page of tags: what it says, its limits, and what it allows."""

import base64
import html
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from pipeline.audio.rejects import Reject
from pipeline.fbank_settings import FbankSettings
from pipeline.manifest.manifest import Clip
from tests.support.audio import encode, tone
from tests.support.tags import RATE_HZ, STEADY, Window, make_tags, write_audio, write_tags
from trainer.tagging import strips, tags_page
from trainer.tagging.settings import check_audio_url
from trainer.tagging.source import Recordings, list_recordings
from trainer.tagging.strips import Strip, Wanted, read_strips
from trainer.tagging.tags_page import clock, ticks, write_tags_page
from trainer.tagging.timelines import MAX_CELLS, overview, read_timelines


def said(path: str) -> str:
    """The words of a page, apart from its scripts and style."""
    text = Path(path).read_text()
    text = re.sub(r"<(script|style|title)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def batches(rows: Sequence[Mapping[str, object]]) -> list[pa.RecordBatch]:
    found: list[pa.RecordBatch] = pa.Table.from_pylist(rows).to_batches(max_chunksize=7)
    return found


def best_of(name: str, **scores: float) -> dict[str, object]:
    return {
        "recording": name,
        "max_labels": list(scores),
        "max_scores": list(scores.values()),
        "num_windows": 1,
    }


def test_page_says_what_was_tagged(tmp_path: Path) -> None:
    rejects = [
        Reject(id="b.wav", uri="/b.wav", stage="decode", reason="cut short or damaged"),
        Reject(id="c.mp3", uri="/c.mp3", stage="fetch", reason="not found"),
    ]
    tags = {"a.wav": STEADY, "sub/b.wav": STEADY[:1]}
    output, recordings, card = make_tags(
        tmp_path, tags, rejects=rejects, faults={"sub/b.wav": "cut short or damaged"}
    )
    path = write_tags_page(output, recordings, card)
    assert path == f"{output}/tags.html"
    text = said(path)
    assert "Recordings 2 Audio 5.0 s Windows 3 2 s every 1 s Classes 2" in text
    assert "Broken 2" in text
    assert "a.wav 3.0 s · 2 windows 8 kHz 0 dog rain 0:00.0 0:00.5" in text
    assert "dog 0.900 0.450 rain 0.250 0.125" in text
    assert "sub/b.wav 2.0 s · 1 window Tagged up to a fault: cut short or damaged" in text
    assert "In all 2 recordings" in text
    assert "Highest score dog 2 2 0.900 rain 0 1 0.250" in text
    assert "b.wav decode: cut short or damaged c.mp3 fetch: not found" in text
    assert "the 5 highest classes" in text
    assert Path(path).read_text().count("<audio") == 2


def test_same_tags_give_the_same_page(tmp_path: Path) -> None:
    output, recordings, card = make_tags(tmp_path, {"a.wav": STEADY})
    first = Path(write_tags_page(output, recordings, card)).read_bytes()
    Path(output, "tags.html").unlink()
    assert Path(write_tags_page(output, recordings, card)).read_bytes() == first


def test_page_that_is_there_is_drawn_again_only_for_other_sounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, recordings, card = make_tags(tmp_path, {"a.wav": STEADY})
    first = Path(write_tags_page(output, recordings, card)).read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(tags_page, "read_strips", None)
        write_tags_page(output, recordings, card)
    write_tags_page(output, recordings, card, "https://host/x/")
    assert Path(output, "tags.html").read_bytes() != first


def test_no_recording_and_only_broken_ones_have_a_page(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"no audio")
    rejects = [Reject(id="a.wav", uri="/a.wav", stage="decode", reason="no audio")]
    output, recordings, card = make_tags(tmp_path, {}, rejects=rejects)
    text = said(write_tags_page(output, recordings, card))
    assert "No recording could be tagged." in text
    assert "a.wav decode: no audio" in text


def test_window_without_tags_is_told_apart_from_a_score_of_0(tmp_path: Path) -> None:
    tags: dict[str, list[Window]] = {
        "a.wav": [(0.0, 2.0, {"dog": 1.0}), (1.0, 3.0, {}), (2.0, 4.0, {"dog": 0.0})],
        "quiet.wav": [(0.0, 1.0, {})],
    }
    output, recordings, card = make_tags(tmp_path, tags)
    content = Path(write_tags_page(output, recordings, card)).read_text()
    assert 'data-cells="ff0001"' in content
    assert "No window has a tag." in content


def test_recording_that_is_gone_has_its_tags_without_spectrogram(tmp_path: Path) -> None:
    output, recordings, card = make_tags(tmp_path, {"a.wav": STEADY, "b.wav": STEADY})
    (tmp_path / "in" / "a.wav").unlink()
    content = Path(write_tags_page(output, recordings, card)).read_text()
    assert content.count('class="strip"') == 1
    assert content.count("data-cells") == 2
    assert "No spectrogram: cannot be read again: not found" in content


def test_only_some_of_many_recordings_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tags_page, "MAX_RECORDINGS", 3)
    monkeypatch.setattr(tags_page, "MAX_REJECTS", 2)
    names = [f"{number:02d}.wav" for number in range(12)]
    tags: dict[str, list[Window]] = {
        name: [(0.0, 0.1, {"rain" if number == 7 else "dog": 0.5 + number / 100})]
        for number, name in enumerate(names)
    }
    rejects = [Reject(id=f"{n}", uri="/x", stage="decode", reason="empty") for n in range(11)]
    output, recordings, card = make_tags(tmp_path, tags, rejects=rejects)
    content = Path(write_tags_page(output, recordings, card)).read_text()
    assert re.findall(r'class="name">(.*?)<', content) == ["07.wav", "10.wav", "11.wav"]
    text = said(f"{output}/tags.html")
    assert "3 of 12 recordings are shown" in text
    assert "dog 11 11 0.610 rain 1 1 0.570" in text
    assert "11 recordings could not be read to their end. The first 2 are listed" in text
    assert "11: decode: empty" in text


def test_recordings_are_chosen_from_each_class_in_turn() -> None:
    rows = [best_of(f"d{n:02d}", dog=0.5 + n / 100) for n in range(30)]
    rows += [best_of("r0", rain=0.2, dog=0.1), best_of("r1", rain=0.3), best_of("n")]
    found = overview(batches(rows), 4)
    assert found.chosen == {"d29", "d28", "r0", "r1"}
    assert [(one.label, one.num_highest, one.num_tagged) for one in found.classes] == [
        ("dog", 30, 31),
        ("rain", 2, 2),
    ]
    assert overview(batches(rows), 100).chosen == {row["recording"] for row in rows}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), max_size=40),
    st.integers(1, 12),
)
def test_as_many_recordings_are_chosen_as_there_are(tops: list[tuple[str, int]], most: int) -> None:
    rows = [best_of(f"{n}", **{label: score / 3}) for n, (label, score) in enumerate(tops)]
    if not rows:
        return
    chosen = overview(batches(rows), most).chosen
    assert len(chosen) == min(most, len(rows))
    labels = {label for label, _ in tops}
    if most >= len(labels):
        assert {tops[int(name)][0] for name in chosen} == labels


@pytest.mark.parametrize("num_windows", [1, 2, MAX_CELLS, MAX_CELLS + 1, 3 * MAX_CELLS + 1])
def test_cells_hold_the_highest_score_of_their_windows(num_windows: int) -> None:
    scores = np.random.default_rng(num_windows).random(num_windows).astype(np.float32)
    recording = best_of("a", dog=1.0) | {"num_windows": num_windows}
    windows = [
        {"recording": name, "start_s": n, "end_s": n + 2.0, "labels": ["dog"], "scores": [score]}
        for name in ("a", "b")
        for n, score in enumerate(map(float, scores))
    ]
    (line,) = read_timelines(batches([recording]), batches(windows), {"a"})
    num_cells = line.scores.shape[1]
    assert len(line.edges_s) == num_cells + 1 <= MAX_CELLS + 1
    assert line.edges_s[0] == 0
    assert line.edges_s[-1] == num_windows + 1
    assert all(first < second for first, second in itertools.pairwise(line.edges_s))
    per_cell = -(-num_windows // MAX_CELLS)
    groups = [scores[at : at + per_cell].max() for at in range(0, num_windows, per_cell)]
    np.testing.assert_array_equal(line.scores[0], groups)
    # The middle of each window is in its cell.
    middles = np.arange(num_windows) + 1.0
    cells = np.searchsorted(line.edges_s, middles, side="right") - 1
    assert cells.tolist() == [n // per_cell for n in range(num_windows)]
    assert max(map(len, line.cells)) == 2 * num_cells


def test_page_of_a_day_is_as_small_as_that_of_minutes(tmp_path: Path) -> None:
    sizes = []
    for num in (500, 50_000):
        folder = tmp_path / str(num)
        windows: list[Window] = [(float(n), n + 2.0, {"dog": 0.5}) for n in range(num)]
        card = write_tags(folder / "tags", {"a.wav": windows}, rows_per_group=10_000)
        write_audio(folder / "in", "a.wav", 1.0)
        recordings = list_recordings(str(folder / "in"))
        sizes.append(Path(write_tags_page(str(folder / "tags"), recordings, card)).stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]


def test_sounds_and_strips_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tags = {f"{number}.wav": STEADY for number in range(5)}
    output, recordings, card = make_tags(tmp_path, tags)
    monkeypatch.setattr(tags_page, "MAX_SOUNDS_BYTES", 2 * 3 * 4_000)
    monkeypatch.setattr(tags_page, "MAX_STRIPS_S", 9.5)
    content = Path(write_tags_page(output, recordings, card)).read_text()
    assert content.count("<audio") == 2
    assert content.count('class="strip"') == 3
    assert content.count("No spectrogram: the recordings up to here") == 2
    monkeypatch.setattr(tags_page, "MAX_SOUND_S", 2.9)
    Path(output, "tags.html").unlink()
    assert "<audio" not in Path(write_tags_page(output, recordings, card)).read_text()


def test_stretch_of_a_file_keeps_its_clock(tmp_path: Path) -> None:
    write_audio(tmp_path / "in", "long.wav", 8.0)
    windows: list[Window] = [(3.0, 5.0, {"dog": 0.9}), (4.0, 6.0, {"dog": 0.5})]
    card = write_tags(tmp_path / "tags", {"long.wav": windows})
    one = list_recordings(str(tmp_path / "in" / "long.wav"))
    columns = {"start_s": pa.array([3.0]), "end_s": pa.array([6.0])}
    clips = one.clips
    for name, values in columns.items():
        clips = clips.set_column(clips.schema.get_field_index(name), name, values)
    recordings = Recordings(clips=clips, sizes_bytes=one.sizes_bytes)
    for prefix, sound_start in ((None, "0.0"), ("https://host/", "3.0")):
        path = write_tags_page(str(tmp_path / "tags"), recordings, card, prefix)
        content = Path(path).read_text()
        assert 'data-edges="3.0,4.5,6.0"' in content
        assert f'data-sound-start="{sound_start}"' in content
        assert content.count('class="strip"') == 1
        assert "0:03.0 0:03.5 0:04.0" in said(path)


def test_tags_in_a_bucket_have_a_page_there(s3: str, tmp_path: Path) -> None:
    output, recordings, card = make_tags(tmp_path, {"a.wav": STEADY})
    for name in ("windows.parquet", "recordings.parquet", "rejects.parquet"):
        storage.write_bytes(f"{s3}/tags/{name}", (tmp_path / "tags" / name).read_bytes())
    path = write_tags_page(f"{s3}/tags", recordings, card)
    assert path == f"{s3}/tags/tags.html"
    assert storage.read_bytes(path).count(b"data-cells") == 1
    assert storage.held_kind(output) == "tags of recordings (tags.json)"


def strip_of(content: bytes, tmp_path: Path, num_columns: int) -> Strip:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    clip = Clip(id="a", uri=str(path), labels=(), split="", fold=0)
    duration_s = len(content) // 2 / RATE_HZ
    wanted = Wanted(clip=clip, duration_s=duration_s, num_columns=num_columns, with_sound=False)
    (strip,) = read_strips([wanted], "mean", FbankSettings())
    return strip


def pixels(strip: Strip) -> NDArray[np.uint8]:
    png = base64.b64decode(strip.image.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize("block", [2_000, 16_000, 2**18])
def test_strip_shows_pitch_and_time_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(strips, "_BLOCK_SAMPLES", block)
    sound = np.concatenate([tone(2.0, RATE_HZ, hz=200.0), tone(2.0, RATE_HZ, hz=5_000.0)])
    image = pixels(strip_of(encode(sound), tmp_path, 100))
    assert image.shape == (64, 100)
    loudest = image.argmax(axis=0)
    assert set(loudest[2:48]) <= set(range(55, 64))
    assert set(loudest[52:98]) <= set(range(20))


def test_silence_is_dark(tmp_path: Path) -> None:
    image = pixels(strip_of(encode(np.zeros(RATE_HZ, np.float32)), tmp_path, 50))
    assert image.max() == 0


@pytest.mark.parametrize(
    ("prefix", "policy"),
    [
        ("https://host/a/", "https://host"),
        ("http://127.0.0.1:8000/?id=", "http://127.0.0.1:8000"),
        ("../recordings/", "'self' file:"),
        ("/abs/", "'self' file:"),
    ],
)
def test_policy_allows_sounds_of_the_given_address(prefix: str, policy: str) -> None:
    assert check_audio_url(prefix) == policy


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "javascript:alert(1)//",
        "data:audio/wav,",
        "ftp://host/",
        "//host/",
        "https://a; script-src *",
        "https://a;script-src/*",
        "https://user@host/",
        "https://",
        "https://ho\nst/",
    ],
)
def test_addresses_that_would_change_the_policy_are_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="relative path"):
        check_audio_url(prefix)


def test_ids_are_encoded_in_addresses(tmp_path: Path) -> None:
    name = "sub dir/ä #1?&'\"%.wav"
    output, recordings, card = make_tags(tmp_path, {name: STEADY})
    content = Path(write_tags_page(output, recordings, card, "https://host/x/")).read_text()
    address = "https://host/x/sub%20dir/%C3%A4%20%231%3F%26%27%22%25.wav"
    assert f'preload="none" src="{address}"' in content
    assert "media-src data: https://host;" in content
    assert "Sounds come from https://host/x/" in content


@pytest.mark.parametrize(
    ("time_s", "decimals", "text"),
    [(0, 0, "0:00"), (7.46, 1, "0:07.5"), (59.999, 1, "1:00.0"), (3_750, 0, "1:02:30")],
)
def test_times_are_those_of_a_clock(time_s: float, decimals: int, text: str) -> None:
    assert clock(time_s, decimals) == text


@given(st.floats(0, 1e6), st.floats(0.02, 1e6))
def test_ticks_are_few_and_within_the_timeline(start_s: float, length_s: float) -> None:
    found = ticks(start_s, start_s + length_s)
    assert len(found) <= 9
    assert all(-1e-3 <= position <= 100.001 for position, _ in found)
    assert len({text for _, text in found}) == len(found)
