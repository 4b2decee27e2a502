"""Pages of the data: what they say, that figures are drawn, and that labels and ids stay text."""

import html
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from pipeline import storage
from pipeline.audio.rejects import Reject, to_table
from pipeline.dataset.card import RejectedClips
from pipeline.dataset.prepare_summary import write_summary
from pipeline.dataset.prepared import open_dataset
from pipeline.fbank_settings import PUBLISHED_NORMS
from pipeline.manifest.coverage import CommonClips, Coverage, ListedClass, ListedClips
from pipeline.pages import dataset_page, spectrogram
from pipeline.pages.coverage_page import coverage_section, write_coverage_page
from pipeline.pages.dataset_page import prepared_coverage, write_dataset_page
from pipeline.shards.tar import checksum
from pipeline.terminal import units
from tests.support.browser import OfflineBrowser, OpenPage, open_browser, wait_until
from tests.support.cards import make_card, make_summary, split_entry, write_documents
from tests.support.errors import refused

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<b>bold</b> & <i>it</i>",
    "<img src=x onerror=alert(2)>",
    "\"quoted\" 'label' %{x} {{ 7 * 7 }}",
)
SOUNDS = ("rain", "dog")
NUM_MELS = 16


def make_coverage(**changes: Any) -> Coverage:
    """Two splits and three classes, one without any clip found."""
    whole = Coverage(
        source="s3://sounds/clips",
        splits={"train": _counts(100, 80, 15, 5), "eval": _counts(40, 30, 10, 0)},
        total=_counts(140, 110, 25, 5),
        classes=(
            _class("rain", 100, 90),
            _class("never", 7, 0),
            _class("dog", 40, 20),
            _class("absent", 0, 0),
        ),
        common=CommonClips(listed=36, found=27),
    )
    return replace(whole, **changes)


def _class(label: str, official: int, found: int) -> ListedClass:
    share = found / official if official else 1.0
    return ListedClass(label=label, official=official, found=found, share=share)


def _counts(listed: int, found: int, missing: int, unreadable: int) -> ListedClips:
    return ListedClips(
        listed=listed, found=found, missing=missing, unreadable=unreadable, found_s=10.0 * found
    )


def write_data(
    folder: str,
    *,
    ids: Sequence[str],
    clip_labels: Sequence[Sequence[str]],
    labels: Sequence[str] = SOUNDS,
    levels_dbfs: Sequence[float] | None = None,
    folds: Sequence[int] | None = None,
    rejects: Sequence[Reject] = (),
    **card: Any,
) -> str:
    """A prepared data set: the last clip of several is for evaluation; one fbank serves all."""
    rng = np.random.default_rng(0)
    fbank = rng.normal(-5, 3, (50, NUM_MELS)).astype(np.float16)
    storage.write_bytes(storage.join(folder, "shards/all-00000.tar"), fbank.tobytes())
    num_clips = len(ids)
    splits = ["train"] * max(1, num_clips - 1) + ["eval"] * (num_clips > 1)
    columns = {
        "id": pa.array(ids, pa.string()),
        "uri": pa.array(["/no/such.wav"] * num_clips, pa.string()),
        "split": splits,
        "fold": pa.array(folds or [0] * num_clips, pa.int32()),
        "labels": pa.array(clip_labels, pa.list_(pa.string())),
        "shard": ["shards/all-00000.tar"] * num_clips,
        "offset_bytes": [0] * num_clips,
        "size_bytes": [fbank.nbytes] * num_clips,
        "xxh3": [checksum(fbank.data.cast("B"))] * num_clips,
        "duration_s": rng.uniform(0.5, 10, num_clips),
    }
    if levels_dbfs is not None:
        columns["level_dbfs"] = np.array(levels_dbfs, np.float64)
    entries = {name: split_entry(splits.count(name), 36.0) for name in dict.fromkeys(splits)}
    counts = {
        name: {
            label: sum(
                label in own
                for own, split in zip(clip_labels, splits, strict=True)
                if split == name
            )
            for label in labels
        }
        for name in entries
    }
    document = make_card(
        NUM_MELS,
        labels=list(labels),
        num_clips=num_clips,
        splits=entries,
        class_counts=counts,
        rejects=RejectedClips(num=len(rejects), by_reason={}),
        **card,
    )
    write_documents(folder, document, pa.table(columns), to_table(rejects))
    return folder


def plain_data(folder: str, num_clips: int = 30, **options: Any) -> str:
    return write_data(
        folder,
        ids=[f"clip-{number}" for number in range(num_clips)],
        clip_labels=[[SOUNDS[number % 2]] for number in range(num_clips)],
        **options,
    )


def hostile_data(folder: str) -> str:
    """Ids, labels, reasons and splits that hold HTML; silent clips; a class of no clip."""
    labels = [*HOSTILE, "never"]
    data = write_data(
        folder,
        ids=[f"{label} {number}" for number, label in enumerate(HOSTILE * 3)],
        clip_labels=[[label] for label in HOSTILE * 3],
        labels=labels,
        levels_dbfs=[-math.inf, -math.inf, *np.linspace(-60, -3, 10)],
        rejects=[
            Reject(id=f"{label} bad {number}", uri="/x", stage="decode", reason=HOSTILE[1])
            for number, label in enumerate(HOSTILE * 2)
        ],
        coverage=make_coverage(
            source=HOSTILE[0],
            splits={"train": _counts(30, 18, 10, 2), "eval": _counts(2, 2, 0, 0)},
            total=_counts(32, 20, 10, 2),
            classes=tuple(_class(label, 8, 5) for label in labels),
        ),
    )
    write_summary(make_summary(data))
    return data


def said(path: str) -> str:
    """The words of a page, apart from its scripts and style."""
    text = storage.read_bytes(path).decode()
    text = re.sub(r"<(script|style|title)\b.*?</\1>|<[^>]*>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(text).split())


def test_folds_and_labels_with_commas_are_told_apart(tmp_path: Path) -> None:
    data = write_data(
        str(tmp_path / "data"),
        ids=["a", "b", "c"],
        clip_labels=[["Dog, wild", "Rain"], ["Rain"], ["Rain"]],
        labels=["Dog, wild", "Rain"],
        folds=[2, 1, 0],
    )
    content = storage.read_bytes(write_dataset_page(data)).decode()
    assert "<span>Dog, wild</span> <span>Rain</span>" in content
    assert re.search(
        r"Folds Split Fold Clips Duration train 1 1 .* train 2 1 .* eval none 1",
        said(data + "/dataset.html"),
    )


def test_rates_of_the_files_are_shown(tmp_path: Path) -> None:
    data = plain_data(str(tmp_path / "data"))
    rates = {"8000": 2, "16000": 1_500, "44100": 3}
    write_summary(replace(make_summary(data), file_rates=rates))
    text = said(write_dataset_page(data))
    assert "where it is lower, the mel bins above half of it are empty" in text
    assert "Hz Clips 8,000 2 16,000 1,500 44,100 3" in text
    write_summary(replace(make_summary(data), file_rates={}))
    assert "Sample rates of the files" not in said(write_dataset_page(data))


def test_empty_sections_are_not_in_the_contents(tmp_path: Path) -> None:
    content = storage.read_bytes(write_dataset_page(plain_data(str(tmp_path / "data")))).decode()
    links = re.findall(r'<li><a href="#(\w+)">', content)
    assert links == ["overview", "classes", "clips", "examples"]


def written_coverage(folder: Path, **changes: Any) -> str:
    path = str(folder / "coverage.html")
    write_coverage_page(path, make_coverage(**changes), "Clips")
    return path


def test_coverage_page_counts_found_segments(tmp_path: Path) -> None:
    text = said(written_coverage(tmp_path))
    assert "Found 110 of 140 clips, 78.6 %" in text
    assert "train 80.0 % 80 15 5 100 13 min eval 75.0 % 30 10 0 40 5 min 0 s" in text
    assert "All 78.6 % 110 25 5 140 18 min" in text
    assert "never 0 % 0 7 dog 50.0 % 20 40 rain 90.0 % 90 100 absent – 0 0" in text
    assert "Half of the 3 listed classes have at least 50.0 % of their clips" in text
    assert "Classes without a clip (1): never" in text
    assert "(30 of 40 in the split eval)" in text
    assert "Of the 36 clips that others scored (the common subset), 27 were found, 75.0 %" in text
    assert "0.459" not in text
    assert "scrolls" not in text


def test_scrolling_table_says_so(tmp_path: Path) -> None:
    classes = [_class(f"class {n}", 9, n) for n in range(30)]
    assert "table of 30 rows scrolls" in said(written_coverage(tmp_path, classes=classes))


def test_audioset_coverage_shows_published_scores(tmp_path: Path) -> None:
    classes = [_class(f"{i}", 9, 8) for i in range(527)]
    text = said(written_coverage(tmp_path, classes=classes, common=None))
    assert "mAP 0.459 for one model and 0.485 for an ensemble" in text
    assert "common subset" not in text
    assert "Classes without a clip" not in text


def test_complete_and_unlabelled_sources_have_a_page(tmp_path: Path) -> None:
    whole = _counts(3, 3, 0, 0)
    text = said(
        written_coverage(tmp_path, splits={"all": whole}, total=whole, classes=[], common=None)
    )
    assert "Every listed clip was found" in text
    assert "names no classes" in text


def test_rejected_clips_count_as_unreadable() -> None:
    card = make_card(
        NUM_MELS,
        num_clips=104,
        splits={"train": split_entry(74, 700.0)},
        class_counts={"train": {"rain": 80, "dog": 10}},
        rejects=RejectedClips(num=36, by_reason={}),
    )
    fewer = replace(card, rejects=RejectedClips(num=35, by_reason={}))
    assert prepared_coverage(make_coverage(), fewer) is None
    coverage = prepared_coverage(make_coverage(), card)
    assert coverage is not None
    assert coverage.splits["train"] == replace(_counts(100, 74, 15, 11), found_s=700.0)
    assert coverage.splits["eval"] == _counts(40, 0, 10, 30)
    assert coverage.total == replace(_counts(140, 104, 25, 11), found_s=700.0)
    shares = {entry["label"]: entry["share"] for entry in coverage_section(coverage)["classes"]}
    assert shares == {"never": 0, "dog": 0.25, "rain": 0.8, "absent": None}


def test_coverage_of_other_clips_is_marked(tmp_path: Path) -> None:
    data = plain_data(str(tmp_path / "data"), coverage=make_coverage())
    text = said(write_dataset_page(data))
    assert "The data set holds other clips than were counted" in text
    assert "Found 110 of 140 clips" in text


def test_page_describes_the_data_set(tmp_path: Path) -> None:
    data = hostile_data(str(tmp_path / "data"))
    path = write_dataset_page(data)
    assert path == f"{data}/dataset.html"
    text = said(path)
    assert "Clips 12 in 2 splits Audio 1 min 12 s Classes 5 Size 2.3 MB Rejected 8 40.0 %" in text
    assert "Coverage 37.5 % of 32 listed clips" in text
    assert "train 11 36 s −5.0000 3.0000 eval 1 36 s" in text
    assert "This data set −5.0000 3.0000 0.000 0.500" in text
    assert "AudioSet −4.2677 4.5690 −0.080 0.328" in text
    assert "Clips that were rejected count as unreadable" in text
    assert "train 36.7 % 11 10 9 30 36 s eval 50.0 % 1 0 1 2 36 s" in text
    assert f"decode {HOSTILE[1]} 8" in text
    assert sum(f"bad {number}" in text for number in range(8)) == dataset_page.NUM_REJECT_EXAMPLES
    assert "2 clips are silent throughout" in text
    assert "fetch 3.0 s, 3.7 %" in text
    assert "The last run took 12 s for 12 clips" in text


def test_page_of_a_minimal_data_set_is_complete(tmp_path: Path) -> None:
    data = write_data(str(tmp_path / "data"), ids=["one"], clip_labels=[[]], labels=[])
    text = said(write_dataset_page(data))
    assert "The data set has no labels." in text
    assert "No clip was rejected." in text
    assert "The index holds no levels." in text
    assert "Coverage unknown" in text
    assert "Duration unknown" in text
    assert "one 16 mel 0" in text
    assert "no label ·" in text


def test_missing_shards_are_stated(tmp_path: Path) -> None:
    data = plain_data(str(tmp_path / "data"))
    storage.remove(f"{data}/shards/all-00000.tar")
    assert "No clips can be shown. The data set's shards cannot be read" in said(
        write_dataset_page(data)
    )


def test_folder_without_data_set_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "card.json", remedy="prepare"):
        write_dataset_page(str(tmp_path))


def test_page_is_written_in_a_bucket(s3: str) -> None:
    data = plain_data(f"{s3}/data")
    path = write_dataset_page(data)
    assert path == f"{s3}/data/dataset.html"
    assert storage.read_bytes(path).count(b"<img ") == dataset_page.NUM_EXAMPLES


def test_same_data_give_the_same_page(tmp_path: Path) -> None:
    first = storage.read_bytes(write_dataset_page(plain_data(str(tmp_path / "data"))))
    assert storage.read_bytes(write_dataset_page(str(tmp_path / "data"))) == first


def test_page_size_is_independent_of_the_number_of_clips(tmp_path: Path) -> None:
    small, large = (
        storage.read_bytes(
            write_dataset_page(
                plain_data(str(tmp_path / f"{num}"), num, levels_dbfs=np.linspace(-80, 0, num))
            )
        )
        for num in (50, 50_000)
    )
    assert len(large) < 1.01 * len(small)
    assert large.count(b"<") < 1.1 * small.count(b"<")


def test_examples_depend_only_on_the_data_set() -> None:
    rows = dataset_page.choose_rows(1000, "f" * 64)
    assert rows == dataset_page.choose_rows(1000, "f" * 64)
    assert rows != dataset_page.choose_rows(1000, "e" * 64)
    assert len(set(rows)) == dataset_page.NUM_EXAMPLES
    assert dataset_page.choose_rows(3, "any") == [0, 1, 2]


def test_rejects_are_counted_by_reason(tmp_path: Path) -> None:
    reasons = ["empty"] * 7 + ["not audio"] * 2
    rejects = [
        Reject(id=f"{number}", uri=f"/{number}", stage="decode", reason=reason)
        for number, reason in enumerate(reasons)
    ]
    data = plain_data(str(tmp_path / "data"), rejects=rejects)
    assert dataset_page.reject_rows(open_dataset(data)) == [
        {"stage": "decode", "reason": "empty", "num": 7, "ids": list("01234")},
        {"stage": "decode", "reason": "not audio", "num": 2, "ids": list("78")},
    ]


def test_published_norms_give_half_a_deviation() -> None:
    rows = dataset_page.norms(*PUBLISHED_NORMS["AudioSet"])
    assert (rows[0]["mean_after"], rows[0]["std_after"]) == (0, 0.5)
    assert rows[1]["mean_after"] == pytest.approx((-4.2677393 + 6.6268077) / (2 * 5.358466))


@given(st.lists(st.floats(0.025, 40_000), min_size=1, max_size=60))
def test_every_duration_falls_into_a_bin(durations_s: list[float]) -> None:
    figure = dataset_page.duration_plot(np.array(durations_s)).figure
    bars = figure["data"][0]
    assert sum(count or 0 for count in bars["y"]) == len(durations_s)
    assert len(bars["y"]) == len(bars["customdata"]) <= 60
    assert 1 <= len(figure["layout"]["xaxis"]["tickvals"]) <= 25


def test_round_duration_starts_its_bin() -> None:
    bars = dataset_page.duration_plot(np.array([0.3, 5.0, 5.0, 4.99])).figure["data"][0]
    counts = {n: y for n, y in zip(bars["customdata"], bars["y"], strict=True) if y}
    assert counts == {"0.3 to 0.4 s": 1, "4.9 to 5 s": 1, "5 to 5.1 s": 2}


@given(st.lists(st.floats(-200, 3) | st.sampled_from([-math.inf, math.nan]), max_size=60))
@example([-5e-324])
@example([0.0, -5e-324])
def test_every_level_falls_into_a_bin_with_silence_apart(levels: list[float]) -> None:
    plot = dataset_page.level_plot(np.array(levels, np.float64))
    num_known = sum(not math.isnan(level) for level in levels)
    if not num_known:
        assert plot is None
        return
    assert plot is not None
    bars = plot.figure["data"][0]
    counts = dict(zip(bars["customdata"], bars["y"], strict=True))
    assert sum(count or 0 for count in counts.values()) == num_known
    assert counts.get("silence", 0) == levels.count(-math.inf)
    assert ("unknown" in plot.caption) == (num_known < len(levels))


@pytest.mark.parametrize("num_clips", [1, 4, 40])
def test_bars_are_centred_on_their_axis(num_clips: int) -> None:
    plot = dataset_page.level_plot(np.arange(num_clips, dtype=np.float64) - 40.0)
    assert plot is not None
    low, high = plot.figure["layout"]["xaxis"]["range"]
    positions = plot.figure["data"][0]["x"]
    assert low < positions[0] - 0.5
    assert positions[-1] + 0.5 < high
    assert low + high == pytest.approx(positions[0] + positions[-1])
    assert high - low > 12


def test_dominant_bin_hides_no_other() -> None:
    axis = dataset_page.duration_plot(np.array([10.0] * 5000 + [1.0, 2.0, 3.0])).figure["layout"]
    assert axis["yaxis"]["type"] == "log"
    assert 10 ** axis["yaxis"]["range"][0] < 1
    assert "type" not in dataset_page.duration_plot(np.array([1.0, 2.0])).figure["layout"]["yaxis"]


@given(st.floats(0, 1))
def test_only_a_full_share_is_100_percent(share: float) -> None:
    assert (units.percent(share) == "100\N{NO-BREAK SPACE}%") == (share == 1)
    assert (units.percent(share) == "0\N{NO-BREAK SPACE}%") == (share == 0)


def test_numbers_are_rounded_with_units() -> None:
    shares, sizes_bytes = (0.8733, 0.9999, 1e-9), (0, 812e3, 9.96e6, 999.6e6, 1.34e12, 5e15)
    written = [units.percent(share) for share in shares] + [units.size(n) for n in sizes_bytes]
    assert ", ".join(written).replace("\N{NO-BREAK SPACE}", " ") == (
        "87.3 %, > 99.9 %, < 0.1 %, 0.0 kB, 812 kB, 10 MB, 1.0 GB, 1.3 TB, 5000 TB"
    )


@pytest.mark.parametrize(
    "num_frames", [1, 37, spectrogram.MAX_COLUMNS, 2 * spectrogram.MAX_COLUMNS + 1]
)
def test_spectrogram_has_low_bins_at_the_bottom(num_frames: int) -> None:
    fbank = np.full((num_frames, NUM_MELS), -10, dtype=np.float32)
    fbank[:, 2] = 5
    fbank[0, NUM_MELS - 1] = 5
    png = spectrogram.spectrogram_png(fbank, low=-10, high=5)
    with Image.open(io.BytesIO(png)) as image:
        stretch = math.ceil(num_frames / spectrogram.MAX_COLUMNS)
        assert image.size == (math.ceil(num_frames / stretch), NUM_MELS)
        assert image.width <= spectrogram.MAX_COLUMNS
        pixels = np.asarray(image.convert("RGB")).astype(int).sum(axis=2)
    assert (pixels[NUM_MELS - 1 - 2] == pixels.max()).all()
    assert (pixels[NUM_MELS - 1] == pixels.min()).all()
    # The bright frame is one of `stretch` that its column averages.
    assert (pixels[0, 0] == pixels.max()) == (stretch == 1)
    assert pixels[0, 0] > pixels.min()


@given(st.floats(0.02, 40_000))
def test_time_ticks_are_few_and_round_and_within_the_clip(duration_s: float) -> None:
    ticks = spectrogram.time_ticks(duration_s)
    assert 1 <= len(ticks) <= 8
    assert ticks[0] == (0, "0")
    for position, text in ticks:
        assert 0 <= position <= 100 + 1e-6
        assert float(text) == pytest.approx(position * duration_s / 100, abs=1e-6)


@pytest.fixture(scope="module")
def browser() -> Iterator[OfflineBrowser]:
    with open_browser() as started:
        yield started


def opened(browser: OfflineBrowser, path: str) -> OpenPage:
    shown = browser.open(Path(path))
    wait_until(shown.page, "document.documentElement.dataset.drawn !== undefined")
    return shown


@pytest.fixture(scope="module")
def dataset(browser: OfflineBrowser, tmp_path_factory: pytest.TempPathFactory) -> OpenPage:
    data = hostile_data(str(tmp_path_factory.mktemp("hostile") / "data"))
    return opened(browser, write_dataset_page(data))


@pytest.fixture
def coverage(browser: OfflineBrowser, tmp_path: Path) -> Iterator[OpenPage]:
    labels = [*HOSTILE, *(f"class {number}" for number in range(523))]
    classes = [_class(label, 1000, 1000 - number) for number, label in enumerate(labels)]
    shown = opened(browser, written_coverage(tmp_path, classes=classes, source=HOSTILE[2]))
    yield shown
    shown.page.close()


def test_pages_fetch_nothing_and_run_no_foreign_script(
    dataset: OpenPage, coverage: OpenPage
) -> None:
    for shown, num_scripts in ((dataset, 3), (coverage, 1)):
        assert shown.requests == shown.errors == shown.dialogs == []
        assert shown.page.locator("script").count() == num_scripts
        assert shown.page.locator("main a, main b, main u, header b").count() == 0
        assert shown.page.locator("img:not([src^='data:image/png;base64,'])").count() == 0


def test_ids_and_labels_stay_text(dataset: OpenPage) -> None:
    ids = dataset.page.locator("#examples h3").all_text_contents()
    assert [text.strip() for text in ids] == [
        f"{label} {number}" for number, label in enumerate(HOSTILE * 3)
    ]
    ticks = dataset.page.locator("[data-figure=class-counts] .ytick text").all_text_contents()
    assert {text[:20] for text in ticks} == {label[:20] for label in (*HOSTILE, "never")}
    assert dataset.page.locator("svg text a, svg tspan[style*='font-weight']").count() == 0


def test_plotly_accepts_the_figures(dataset: OpenPage) -> None:
    problems = dataset.page.evaluate(
        """() => Object.entries(JSON.parse(document.getElementById('figures').textContent))
            .flatMap(([key, figure]) => (Plotly.validate(figure.data, figure.layout) ?? [])
                .map((problem) => `${key}: ${problem.msg}`))"""
    )
    assert problems == []
    bars = dataset.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[data-figure]')].map((box) =>
            [box.dataset.figure, [...box.querySelectorAll('.barlayer .point path')]
                .map((bar) => bar.getBBox())
                .filter((box) => box.width * box.height > 1).length]))"""
    )
    assert set(bars) == {"class-counts", "durations", "levels"}
    assert bars["class-counts"] == 5
    assert bars["levels"] == 11


def test_share_bars_have_the_right_width(dataset: OpenPage) -> None:
    widths = dataset.page.evaluate(
        """() => [...document.querySelectorAll('#coverage tfoot .stack i')].map((part) =>
            part.getBoundingClientRect().width
            / part.parentElement.getBoundingClientRect().width)"""
    )
    assert widths == pytest.approx([12 / 32, 10 / 32, 10 / 32], abs=0.01)


def test_click_sorts_the_classes(coverage: OpenPage) -> None:
    rows = coverage.page.locator("#classes tbody tr")
    assert rows.count() == 527
    assert (rows.first.text_content() or "").startswith("class 522")
    # The twenty worst are seen without scrolling.
    assert coverage.page.evaluate(
        """() => { const box = document.querySelector('#classes .tall');
            return box.querySelectorAll('tbody tr')[19].getBoundingClientRect().bottom
                <= box.getBoundingClientRect().bottom && box.scrollHeight > box.clientHeight; }"""
    )
    headings = coverage.page.locator("#classes th button")
    for number, first, last in (
        (1, HOSTILE[0], "class 522"),
        (3, HOSTILE[0], "class 522"),
        (0, HOSTILE[3], "class 522"),
    ):
        headings.nth(number).click()
        assert (rows.first.text_content() or "").startswith(first), number
        assert (rows.last.text_content() or "").startswith(last), number
    assert coverage.page.locator("#classes th[aria-sort]").count() == 1


def test_pages_fit_a_phone_and_dark_mode(dataset: OpenPage, coverage: OpenPage) -> None:
    for shown in (dataset, coverage):
        background = "getComputedStyle(document.body).backgroundColor"
        light = shown.page.evaluate(background)
        try:
            shown.page.set_viewport_size({"width": 390, "height": 800})
            shown.page.emulate_media(color_scheme="dark")
            wait_until(shown.page, f"{background} !== '{light}'")
            wait_until(shown.page, "document.documentElement.scrollWidth <= 390")
        finally:
            shown.page.emulate_media(color_scheme="light")
            shown.page.set_viewport_size({"width": 1280, "height": 900})
