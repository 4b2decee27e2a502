"""A headless Chromium without network, for tests that look at pages as a reader would."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Dialog,
    Page,
    Request,
    Route,
    sync_playwright,
)

PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

LOAD_TIMEOUT_S = 120
"""Until a page must have loaded: a report holds 5 MB of scripts."""


@dataclass(kw_only=True)
class OpenPage:
    """A page in the browser, with its requests and errors."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses other than that of the page itself and data in it."""
    errors: list[str] = field(default_factory=list)
    """Uncaught exceptions, and errors and warnings on the console."""
    dialogs: list[str] = field(default_factory=list)
    """What `alert` and the like said."""


def find_chromium() -> str:
    """Path of the browser. Without one the test is skipped, in CI (CI=true) it fails."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        reason = f"no browser: none of {', '.join(PROGRAMS[:4])} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


@dataclass(frozen=True, kw_only=True)
class OfflineBrowser:
    """The browser; only one can be open in a process."""

    browser: Browser

    def open(
        self,
        path: Path,
        *,
        width_px: int = 1280,
        height_px: int = 900,
        colour_scheme: Literal["dark", "light"] = "light",
        is_phone: bool = False,
    ) -> OpenPage:
        """Open a local HTML file; a request to anything but a file is refused and noted."""
        return self.open_address(
            path.resolve().as_uri(),
            "file:",
            width_px=width_px,
            height_px=height_px,
            colour_scheme=colour_scheme,
            is_phone=is_phone,
        )

    def open_address(
        self,
        address: str,
        allowed: str,
        *,
        width_px: int = 1280,
        height_px: int = 900,
        colour_scheme: Literal["dark", "light"] = "light",
        is_phone: bool = False,
    ) -> OpenPage:
        """Open a page; a request to an address that does not start as allowed is refused."""
        page = self.browser.new_page(
            viewport={"width": width_px, "height": height_px},
            color_scheme=colour_scheme,
            is_mobile=is_phone,
            has_touch=is_phone,
        )
        opened = OpenPage(page=page)
        _watch(opened, address, allowed)
        page.goto(address, timeout=LOAD_TIMEOUT_S * 1000)
        return opened


@contextmanager
def open_browser(*options: str) -> Iterator[OfflineBrowser]:
    """Start the browser; it ends with the context, and all pages with it."""
    arguments = [*options]
    arguments += ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    program = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=arguments, timeout=LOAD_TIMEOUT_S * 1000
        )
        try:
            yield OfflineBrowser(browser=browser)
        finally:
            browser.close()


@contextmanager
def open_page(path: Path) -> Iterator[OpenPage]:
    """Open one local HTML file in a new browser."""
    with open_browser() as browser:
        yield browser.open(path)


def swipe_left(page: Page, x: float, y: float, *, by_px: int) -> None:
    """Move a finger to the left from a point of the window."""
    session = page.context.new_cdp_session(page)
    for moved in range(0, by_px + 1, 10):
        kind = "touchMove" if moved else "touchStart"
        points = [{"x": x - moved, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait_for_timeout(16)
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def wait_until(page: Page, expression: str, *, timeout_s: float = 60) -> None:
    """Wait for a JavaScript expression to become true.

    Playwright's own `wait_for_function` evaluates strings inside the page, which a page's content
    security policy may forbid.
    """
    deadline = time.monotonic() + timeout_s
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, f"not true within {timeout_s} s: {expression}"
        page.wait_for_timeout(50)


def _watch(opened: OpenPage, address: str, allowed: str) -> None:
    def refuse_network(route: Route) -> None:
        if route.request.url.startswith(allowed):
            route.continue_()
        else:
            route.abort()

    def note_request(request: Request) -> None:
        if request.url != address and not request.url.startswith(("data:", "blob:")):
            opened.requests.append(request.url)

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            opened.errors.append(message.text)

    def note_dialog(dialog: Dialog) -> None:
        opened.dialogs.append(dialog.message)
        dialog.dismiss()

    page = opened.page
    page.route("**/*", refuse_network)
    page.on("request", note_request)
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on("console", note_message)
    page.on("dialog", note_dialog)
