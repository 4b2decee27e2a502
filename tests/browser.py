"""A headless Chromium without network, for tests that look at pages as a reader would."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, sync_playwright

PROGRAMS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)


@dataclass(kw_only=True)
class OpenPage:
    """A page in the browser, with what it asked for and complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    """Addresses other than that of the page itself and data in it."""
    errors: list[str] = field(default_factory=list)
    """Uncaught exceptions, and errors and warnings on the console."""
    dialogs: list[str] = field(default_factory=list)
    """What `alert` and the like said."""


def find_chromium() -> str:
    """Path of the browser. Without one the test is skipped, in CI (CI=true) it fails."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        reason = f"no browser: none of {', '.join(PROGRAMS[:4])} is installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@contextmanager
def open_page(
    path: Path, *, width_px: int = 1280, height_px: int = 900, colour_scheme: str = "light"
) -> Iterator[OpenPage]:
    """Open a local HTML file; every request to anything but a file is refused and noted."""
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            page = browser.new_page(
                viewport={"width": width_px, "height": height_px}, color_scheme=colour_scheme
            )
            opened = OpenPage(page=page)
            address = path.resolve().as_uri()
            _watch(opened, address)
            page.goto(address, timeout=120_000)
            yield opened
        finally:
            browser.close()


def _watch(opened: OpenPage, address: str) -> None:
    def route(route: Route) -> None:
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            route.abort()

    def note_request(url: str) -> None:
        if url != address and not url.startswith(("data:", "blob:")):
            opened.requests.append(url)

    page = opened.page
    page.route("**/*", route)
    page.on("request", lambda request: note_request(request.url))
    page.on("pageerror", lambda error: opened.errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            opened.errors.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("dialog", lambda dialog: (opened.dialogs.append(dialog.message), dialog.dismiss()))
