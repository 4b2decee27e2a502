"""The page of tags as a reader sees it: text stays text, places are shown, sounds are played."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.audio.rejects import Reject
from tests.support.browser import OfflineBrowser, OpenPage, open_browser, wait_until
from tests.support.reports import HOSTILE
from tests.support.tags import STEADY, Window, make_tags
from trainer.tagging.tags_page import write_tags_page


@pytest.fixture(scope="module")
def browser() -> Iterator[OfflineBrowser]:
    with open_browser() as started:
        yield started


def opened(browser: OfflineBrowser, path: str) -> OpenPage:
    shown = browser.open(Path(path))
    wait_until(shown.page, "document.documentElement.dataset.drawn !== undefined")
    return shown


@pytest.fixture
def hostile(browser: OfflineBrowser, tmp_path: Path) -> Iterator[OpenPage]:
    """Labels, names and reasons that hold HTML; six recordings with sound."""
    names = [f"{text.replace('/', '_')} {n}.wav"[:80] for n, text in enumerate(HOSTILE[:6])]
    windows: list[Window] = [
        (float(start), start + 2.0, {HOSTILE[start % 3]: 0.9, HOSTILE[3 + start]: 0.4})
        for start in range(4)
    ]
    rejects = [Reject(id=text, uri="/x", stage="decode", reason=HOSTILE[1]) for text in HOSTILE]
    output, recordings, card = make_tags(
        tmp_path,
        dict.fromkeys(sorted(names), windows),
        rejects=rejects,
        faults={names[0]: HOSTILE[2]},
    )
    shown = opened(browser, write_tags_page(output, recordings, card))
    yield shown
    shown.page.close()


def test_page_fetches_nothing_and_shows_hostile_text_as_it_is(hostile: OpenPage) -> None:
    assert hostile.requests == hostile.errors == hostile.dialogs == []
    page = hostile.page
    assert page.locator("script").count() == 1
    assert page.locator("main a, main u, header b, main i:not([class], .hz i)").count() == 0
    assert page.locator("img:not([src^='data:image/png;base64,'])").count() == 0
    labels = page.locator(".recording").first.locator(".row").all_text_contents()
    assert set(labels) <= set(HOSTILE)
    assert len(labels) == 7
    assert page.locator("#broken tbody th").all_text_contents() == sorted(HOSTILE)


def test_page_fits_a_phone_and_dark_mode(hostile: OpenPage) -> None:
    page = hostile.page
    canvas = "document.querySelector('canvas')"
    pixel = f"[...{canvas}.getContext('2d').getImageData(3, 8, 1, 1).data].join()"
    wait_until(page, f"{canvas}.width > 300")
    light = page.evaluate(pixel)
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark")
    wait_until(page, "document.documentElement.scrollWidth <= 390")
    wait_until(page, f"{pixel} !== '{light}'")


@pytest.mark.parametrize("duration_s", [0.3, 3.0, 60.0])
def test_times_do_not_overlap(browser: OfflineBrowser, tmp_path: Path, duration_s: float) -> None:
    windows: list[Window] = [(0.0, duration_s, {"dog": 0.9})]
    output, recordings, card = make_tags(tmp_path, {"a.wav": windows})
    page = opened(browser, write_tags_page(output, recordings, card)).page
    for width_px in (1280, 390, 360):
        page.set_viewport_size({"width": width_px, "height": 800})
        boxes = [time.bounding_box() for time in page.locator(".times span:visible").all()]
        places = [(box["x"], box["x"] + box["width"]) for box in boxes if box is not None]
        assert 2 <= len(places) == len(boxes)
        assert all(end < start for (_, end), (start, _) in pairwise(places)), (width_px, places)
    page.close()


def place(page: OpenPage) -> str:
    return page.page.locator(".readout").first.text_content() or ""


def test_mouse_shows_time_class_and_score(hostile: OpenPage) -> None:
    page = hostile.page
    tracks = page.locator(".tracks").first
    canvas = page.locator("canvas").first
    box = canvas.bounding_box()
    assert box is not None
    first = page.locator(".row").first.text_content()
    # Cells of four windows in 5 s: up to 1.5 s, 2.5 s, 3.5 s, and the end.
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 4)
    assert place(hostile) == f"0:00.5 {first} 0.90"
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 4)
    assert place(hostile) == f"0:02.0 {first} is no tag"
    above = tracks.bounding_box()
    assert above is not None
    page.mouse.move(above["x"] + 0.4 * above["width"], above["y"] + 30)
    assert place(hostile) == f"0:02.0 {HOSTILE[1]} 0.90 · {HOSTILE[4]} 0.40"


def test_keys_move_the_place(hostile: OpenPage) -> None:
    page = hostile.page
    timeline = page.locator(".timeline").first
    timeline.focus()
    assert place(hostile).startswith("0:00.0 ")
    page.keyboard.press("ArrowRight")
    assert place(hostile).startswith("0:02.0 ")
    page.keyboard.press("End")
    assert place(hostile).startswith("0:04.3 ")
    assert timeline.get_attribute("aria-valuetext") == place(hostile)
    page.keyboard.press("ArrowDown")
    assert place(hostile).startswith(f"0:04.3 {page.locator('.row').first.text_content()} ")
    page.keyboard.press("Home")
    assert place(hostile).startswith("0:00.8 ")


def test_click_plays_from_there(hostile: OpenPage) -> None:
    page = hostile.page
    for number, share in ((0, 0.6), (1, 0.2)):
        box = page.locator(".tracks").nth(number).bounding_box()
        assert box is not None
        page.locator(".tracks").nth(number).click(
            position={"x": share * box["width"], "y": box["height"] / 2}
        )
        audio = f"document.querySelectorAll('audio')[{number}]"
        wait_until(page, f"{audio}.currentTime >= {share * 5 - 0.1}")
        assert page.evaluate(f"{audio}.currentTime") < 5.1
    assert page.evaluate("document.querySelectorAll('audio')[0].paused")
    assert hostile.errors == []


def test_filter_leaves_matching_recordings(hostile: OpenPage) -> None:
    page = hostile.page
    visible = page.locator(".recording:visible")
    assert visible.count() == 6
    page.locator("#filter").fill("QUOTED")
    assert visible.count() == 6  # a class of all
    page.locator("#filter").fill("example.org_'>link")
    assert visible.count() == 1
    assert page.locator("#matches").text_content() == "1 of 6"


def test_sounds_beside_the_page_are_played(browser: OfflineBrowser, tmp_path: Path) -> None:
    output, recordings, card = make_tags(tmp_path, {"sub dir/ä #1.wav": STEADY})
    shown = opened(browser, write_tags_page(output, recordings, card, "../in/"))
    shown.page.locator(".tracks").first.click()
    wait_until(shown.page, "document.querySelector('audio').currentTime >= 1.4")
    assert shown.errors == []
    assert {request.rpartition("/in/")[2] for request in shown.requests} == {
        "sub%20dir/%C3%A4%20%231.wav"
    }
    shown.page.close()
