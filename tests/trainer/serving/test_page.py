"""The page, in a browser with a microphone that plays a file."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tests.support.audio import encode
from tests.support.browser import OfflineBrowser, open_browser, wait_until
from tests.support.serving import local_server
from tests.support.tagging import sound, write_recording
from trainer.serving.settings import ServeLimits
from trainer.tagging.load import ModelChoice, load_tagger
from trainer.tagging.model import Tagger

TOKEN = "0123456789abcdef"
HOSTILE = '<img src=x onerror="alert(1)">'
DONE = "document.getElementById('status').textContent.startsWith('Tagged')"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_recording(folder / "events.flac", [("rain", 1.3), ("dog", 1.7)], container="FLAC")
    (folder / "microphone.wav").write_bytes(encode(sound("rain", 5.0, rate_hz=48_000), 48_000))
    (folder / "text.wav").write_bytes(b"hello")
    (folder / "large.wav").write_bytes(bytes(1_000_001))
    return folder


@pytest.fixture(scope="module")
def browser(files: Path) -> Iterator[OfflineBrowser]:
    with open_browser(
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={files / 'microphone.wav'}",
    ) as opened:
        yield opened


@pytest.fixture(scope="module")
def address(tagger: Tagger) -> Iterator[str]:
    with local_server(tagger, limits=ServeLimits(max_mb=1.0)) as at:
        yield at


def tag(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    wait_until(page, f"{DONE} || document.getElementById('error').textContent !== ''")


def test_a_file_is_shown_with_its_tags(address: str, browser: OfflineBrowser, files: Path) -> None:
    opened = browser.open_address(address, address)
    page = opened.page
    tag(page, files / "events.flac")
    assert page.inner_text("#status").startswith("Tagged events.flac: rain 0.")
    assert page.inner_text("#name") == "events.flac"
    assert page.inner_text("#facts") == "3 s, 16 kHz, 9 windows"
    wait_until(page, "document.getElementById('picture').naturalWidth > 100")
    wait_until(page, "document.getElementById('audio').readyState > 0")
    names = page.locator("#rows .name").all_inner_texts()
    assert sorted(names) == ["dog", "never", "rain"]
    assert page.locator("#tags th").all_inner_texts() == names
    assert page.locator("#windows tr").count() == 9
    drawing = page.locator("#rows svg").nth(names.index("dog"))
    assert "dog over time, highest 0." in (drawing.get_attribute("aria-label") or "")
    assert opened.errors == []
    assert {one.removeprefix(address).partition("?")[0] for one in opened.requests} == {
        "page.css", "page.js", "model", "tag",
    }  # fmt: skip


def test_a_click_on_the_timeline_goes_there(
    address: str, browser: OfflineBrowser, files: Path
) -> None:
    page = browser.open_address(address, address).page
    tag(page, files / "events.flac")
    wait_until(page, "document.getElementById('audio').readyState > 0")
    box = page.locator("#plot").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 10)
    wait_until(page, "Math.abs(document.getElementById('audio').currentTime - 1.5) < 0.05")
    wait_until(page, "Math.abs(parseFloat(document.getElementById('cursor').style.left) - 50) < 2")


def test_what_the_microphone_hears_is_tagged(address: str, browser: OfflineBrowser) -> None:
    opened = browser.open_address(address, address)
    page = opened.page
    page.get_by_role("button", name="Record").click()
    # A busy machine may miss any one of the times.
    taken = "document.getElementById('taken').textContent >= '0:02'"
    wait_until(page, f"{taken} || document.getElementById('error').textContent !== ''")
    assert page.inner_text("#error") == ""
    page.get_by_role("button", name="Stop").click()
    wait_until(page, DONE)
    assert "Recording: rain 0." in page.inner_text("#status")
    assert "48 kHz" in page.inner_text("#facts")
    assert page.get_by_role("button", name="Record").is_enabled()
    assert opened.errors == []


def test_a_file_that_is_refused_is_one_line_and_the_next_one_works(
    address: str, browser: OfflineBrowser, files: Path
) -> None:
    page = browser.open_address(address, address).page
    tag(page, files / "text.wav")
    assert "no known kind" in page.inner_text("#error")
    assert page.locator("#result").is_hidden()
    tag(page, files / "large.wav")
    assert "1 MB" in page.inner_text("#error")
    tag(page, files / "events.flac")
    assert page.inner_text("#error") == ""
    assert page.locator("#result").is_visible()


def test_the_token_is_asked_for_and_kept_for_the_session(
    tagger: Tagger, browser: OfflineBrowser, files: Path
) -> None:
    with local_server(tagger, token=TOKEN) as address:
        page = browser.open_address(address, address).page
        page.get_by_label("asks for a token").wait_for()
        for text in ("wrong", TOKEN):
            page.get_by_label("asks for a token").fill(text)
            page.keyboard.press("Enter")
            if text == "wrong":
                wait_until(page, "document.getElementById('error').textContent !== ''")
        page.locator("#token-form").wait_for(state="hidden")
        tag(page, files / "events.flac")
        assert page.evaluate("sessionStorage.getItem('ast-ray-token')") == TOKEN
        assert page.evaluate("localStorage.length + document.cookie.length") == 0
        page.reload()
        wait_until(page, "document.getElementById('model').textContent.includes('classes')")
        assert page.locator("#token-form").is_hidden()


def test_names_are_text_whatever_they_say(
    trained_labels: Tagger, browser: OfflineBrowser, files: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"{HOSTILE.replace('/', '')}.flac"
    path.write_bytes((files / "events.flac").read_bytes())
    with local_server(trained_labels) as address:
        opened = browser.open_address(address, address)
        tag(opened.page, path)
        assert HOSTILE in opened.page.locator("#rows .name").all_inner_texts()
        assert opened.page.inner_text("#name") == path.name
        assert opened.page.locator("main img").count() == 1
    assert (opened.errors, opened.dialogs) == ([], [])


@pytest.fixture(scope="module")
def trained_labels(tagger: Tagger, tmp_path_factory: pytest.TempPathFactory) -> Tagger:
    """The model, with a class of an odd name."""
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text(os.linesep.join([HOSTILE, "a" * 90, "dog"]))
    return load_tagger(ModelChoice(path=tagger.source, labels=str(path)))


@pytest.mark.parametrize("width_px", [1280, 360])
def test_nothing_reaches_over_the_edge(
    width_px: int, trained_labels: Tagger, browser: OfflineBrowser, files: Path
) -> None:
    with local_server(trained_labels) as address:
        page = browser.open_address(address, address, width_px=width_px).page
        tag(page, files / "events.flac")
        assert page.evaluate("document.documentElement.scrollWidth") <= width_px
        # The picture, the steps and the line over them have the same place.
        for selector in ("#picture", "#rows svg"):
            found = page.locator(selector).first.bounding_box()
            plot = page.locator("#plot").bounding_box()
            assert found is not None
            assert plot is not None
            assert found["x"] == pytest.approx(plot["x"], abs=2)
            assert found["width"] == pytest.approx(plot["width"], abs=3)


def test_the_keyboard_reaches_all_and_the_result_is_announced(
    address: str, browser: OfflineBrowser, files: Path
) -> None:
    page = browser.open_address(address, address).page
    wait_until(page, "document.getElementById('model').textContent.includes('classes')")
    reached = []
    for _ in range(2):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == ["file", "record"]
    tag(page, files / "events.flac")
    assert page.evaluate("document.activeElement.id") == "name"
    assert page.get_by_role("status").first.inner_text().startswith("Tagged")
    assert page.get_by_role("img", name="Log-mel spectrogram of events.flac").count() == 1
