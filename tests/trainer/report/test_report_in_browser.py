"""A report as a reader sees it, in a browser without network."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import storage
from tests.support.browser import OfflineBrowser, OpenPage, open_browser, swipe_left, wait_until
from tests.support.reports import HOSTILE, SOUNDS, write_data, write_run
from trainer.report.write import write_report


@pytest.fixture(scope="module")
def browser() -> Iterator[OfflineBrowser]:
    with open_browser() as started:
        yield started


def open_report(browser: OfflineBrowser, path: str) -> OpenPage:
    opened = browser.open(Path(path))
    wait_until(opened.page, "document.documentElement.dataset.drawn > 0")
    return opened


@pytest.fixture(scope="module")
def hostile_page(browser: OfflineBrowser, tmp_path_factory: pytest.TempPathFactory) -> OpenPage:
    """Two runs with hostile labels and names, open in a browser."""
    folder = tmp_path_factory.mktemp("hostile")
    labels = list(HOSTILE)
    clips = [[labels[number // 2 % len(labels)]] for number in range(140)]
    data = write_data(str(folder / "data"), clips, labels)
    names = ("<b>run</b> & %{x}", "<img src=x onerror=alert(3)>")
    runs = [
        write_run(str(folder / name), data, clips, labels, seed=seed, recipe=HOSTILE[seed])
        for seed, name in enumerate(names)
    ]
    return open_report(browser, write_report(runs, output=str(folder / "report.html")))


def test_page_fetches_nothing_and_raises_no_error(hostile_page: OpenPage) -> None:
    assert hostile_page.requests == []
    assert hostile_page.errors == []
    assert hostile_page.dialogs == []


def test_labels_stay_text_in_the_page(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    assert page.locator("script").count() == 3
    assert page.locator("main a:not([href^='#']), main b, main u").count() == 0
    assert page.locator("img:not([src^='data:image/png;base64,'])").count() == 0
    cells = page.locator("#classes tbody th").all_text_contents()
    assert sorted(" ".join(text.split()) for text in cells) == sorted(
        " ".join(label.split()) for label in HOSTILE
    )


def test_labels_stay_text_in_the_figures(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    ticks = page.locator("[data-figure=classes] .ytick text").all_text_contents()
    expected = {label if len(label) <= 24 else label[:23].rstrip() + "…" for label in HOSTILE}
    assert {" ".join(text.split()) for text in ticks} == {
        " ".join(text.split()) for text in expected
    }
    # plotly.js makes a link or a styled span of the tags that it reads.
    assert page.locator("svg text a, svg tspan[style*='font-weight']").count() == 0
    page.locator("#confusions").scroll_into_view_if_needed()
    page.evaluate(
        """() => Plotly.Fx.hover(document.querySelector('[data-figure=classes]'),
                                 [{curveNumber: 0, pointNumber: 0}])"""
    )
    hover = page.locator("[data-figure=classes] .hoverlayer").text_content() or ""
    best = page.locator("#classes tbody th").first.text_content() or ""
    assert best[:20] in hover


def test_every_figure_is_drawn(hostile_page: OpenPage) -> None:
    drawn = hostile_page.page.evaluate(
        """() => Object.fromEntries([...document.querySelectorAll('[data-figure]')].map((box) => {
            const size = box.querySelector('.main-svg').getBoundingClientRect();
            return [box.dataset.figure, {
                width: size.width, height: size.height,
                lines: box.querySelectorAll('.scatterlayer .js-line').length,
                bars: box.querySelectorAll('.barlayer .point path').length,
                cells: box.querySelectorAll('.heatmaplayer image').length,
                marks: box.querySelectorAll('.scatterlayer .point').length,
            }];
        }))"""
    )
    assert set(drawn) >= {"curve-loss", "curve-lr", "curve-mAP", "classes", "confusions"}
    assert all(box["width"] > 200 and box["height"] > 80 for box in drawn.values())
    assert drawn["curve-loss"]["lines"] == 6
    assert drawn["curve-lr"]["lines"] == drawn["curve-mAP"]["lines"] == 2
    assert drawn["classes"]["bars"] == len(HOSTILE)
    assert drawn["classes"]["marks"] == 3 * len(HOSTILE)
    assert drawn["confusions"]["cells"] == 1
    assert drawn["class-counts"]["bars"] == 2 * len(HOSTILE)
    assert drawn["durations"]["bars"] == 4


def test_plotly_accepts_the_figures(hostile_page: OpenPage) -> None:
    problems = hostile_page.page.evaluate(
        """() => Object.entries(JSON.parse(document.getElementById('figures').textContent))
            .flatMap(([key, figure]) => (Plotly.validate(figure.data, figure.layout) ?? [])
                .map((problem) => `${key}: ${problem.msg}`))"""
    )
    assert problems == []


def test_run_can_be_hidden(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    lines = page.locator("[data-figure=curve-mAP] .js-line")
    assert lines.count() == 2
    button = page.locator("button[data-run]").first
    button.click()
    wait_until(page, "document.querySelectorAll('[data-figure=curve-mAP] .js-line').length === 1")
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    wait_until(page, "document.querySelectorAll('[data-figure=curve-mAP] .js-line').length === 2")


def test_page_fits_a_phone_and_dark_mode(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    colour = "getComputedStyle(document.querySelector('[data-figure=classes] .ytick text')).fill"
    light = page.evaluate(colour)
    try:
        page.set_viewport_size({"width": 390, "height": 800})
        page.emulate_media(color_scheme="dark")
        wait_until(page, f"{colour} !== '{light}'")
        wait_until(page, "document.documentElement.scrollWidth <= 390")
    finally:
        page.emulate_media(color_scheme="light")
        page.set_viewport_size({"width": 1280, "height": 900})


def test_figures_fit_the_printed_page(hostile_page: OpenPage) -> None:
    page = hostile_page.page
    width = "document.querySelector('[data-figure=classes] .main-svg').clientWidth"
    wait_until(page, f"{width} > 900")
    page.evaluate(
        """() => matchMedia('print').addEventListener('change', (media) => {
            if (media.matches) window.printed = [...document.querySelectorAll('.plot')].map(
                (box) => [box.clientWidth, box.querySelector('.main-svg').clientWidth]);
        })"""
    )
    page.pdf(format="A4")
    printed = page.evaluate("window.printed")
    assert printed
    assert all(0 < figure <= box < 900 for box, figure in printed)
    wait_until(page, f"{width} > 900")


def test_hundreds_of_classes_are_drawn_in_a_scrolling_box(
    browser: OfflineBrowser, tmp_path: Path
) -> None:
    labels = [f"{sound}, number {number}" for number in range(132) for sound in SOUNDS][:527]
    rng = np.random.default_rng(0)
    clips = [sorted({labels[index] for index in rng.integers(0, 527, 3)}) for _ in range(800)]
    data = write_data(str(tmp_path / "data"), clips, labels)
    run = write_run(str(tmp_path / "run"), data, clips, labels)
    num_scored = 527 - storage.read_json(f"{run}/predictions/eval.json")["num_classes_left_out"]
    opened = open_report(browser, write_report([run]))
    page = opened.page
    assert page.locator("[data-figure=classes] .barlayer .point").count() == num_scored
    assert page.locator("[data-figure=classes] .ytick").count() == num_scored
    heights = page.evaluate(
        """() => { const box = document.querySelector('[data-figure=classes]').parentElement;
                   return [box.clientHeight, box.scrollHeight]; }"""
    )
    assert heights[0] <= 640 < heights[1]
    assert opened.errors == opened.requests == []
    page.close()


def test_confusions_scroll_on_a_phone(browser: OfflineBrowser, tmp_path: Path) -> None:
    labels = [f"sound number {number}" for number in range(40)]
    clips = [[label] for label in labels * 4]
    data = write_data(str(tmp_path / "data"), clips, labels)
    run = write_run(str(tmp_path / "run"), data, clips, labels)
    opened = browser.open(Path(write_report([run])), width_px=400, height_px=800, is_phone=True)
    page = opened.page
    wait_until(page, "document.documentElement.dataset.drawn > 0")
    box = page.locator("[data-figure=confusions]").locator("..")
    box.evaluate("box => box.scrollIntoView({block: 'start'})")
    place = box.bounding_box()
    assert place is not None
    swipe_left(page, place["x"] + 250, place["y"] + 200, by_px=150)
    scrolled = "document.querySelector('[data-figure=confusions]').parentElement.scrollLeft"
    wait_until(page, f"{scrolled} > 100")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.close()


def test_constant_metrics_have_a_suitable_axis(browser: OfflineBrowser, run: str) -> None:
    history = storage.read_json(f"{run}/history.json")
    for epoch in history["epochs"]:
        epoch |= {"mAP": 1.0, "accuracy": 0.5}
    storage.write_json(f"{run}/history.json", history)
    opened = open_report(browser, write_report([run]))
    for key in ("mAP", "accuracy"):
        axis = f"document.querySelector('[data-figure=curve-{key}]')._fullLayout.yaxis.range"
        wait_until(opened.page, f"{axis}?.length === 2")
        low, high = opened.page.evaluate(axis)
        assert -0.02 <= low < high <= 1.02
    opened.page.close()
