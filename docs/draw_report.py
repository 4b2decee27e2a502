"""Draws docs/report.png, the picture in the README: the top of a report, as a browser shows it.

In: the report of the demo. Steps: open it in Chromium; hide the table that repeats the headline
numbers, some of the curves and the path of the run; take a screenshot down to the classes; reduce
its colours.

    make demo
    .venv/bin/python docs/draw_report.py build/demo/run/report.html docs/report.png
"""

import argparse
import io
import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.browser import open_browser, wait_until

WIDTH_PX = 1100
"""The smallest width at which the headline numbers, and three curves, fit in one row."""
SCALE = 2
"""Pixels of the picture per pixel of the page, so that small text stays sharp."""
NUM_COLOURS = 64
MAX_BYTES = 300_000

HIDING = """
.runs .path, nav, #results, details, #curves .card:has([data-figure=curve-lr]),
#curves .card:has([data-figure=curve-mAUC]), #curves .card:has([data-figure=curve-d-prime]) {
    display: none !important;
}
"""
"""Style that hides parts of the page. The path would show the machine that drew it."""


def draw(report: Path) -> bytes:
    """The picture of a report as a PNG."""
    with open_browser() as opened:
        page = opened.browser.new_page(
            viewport={"width": WIDTH_PX, "height": 900}, device_scale_factor=SCALE
        )
        page.goto(report.resolve().as_uri())
        wait_until(page, "document.documentElement.dataset.drawn > 0")
        page.add_style_tag(content=HIDING)
        bottom_px = page.evaluate(
            "document.querySelector('#classes .card').getBoundingClientRect().bottom + scrollY"
        )
        png: bytes = page.screenshot(
            full_page=True, clip={"x": 0, "y": 0, "width": WIDTH_PX, "height": bottom_px + 24}
        )
        return png


def with_few_colours(png: bytes) -> bytes:
    """The picture with a palette, which takes far fewer bytes."""
    out = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path, help="report.html of the demo")
    parser.add_argument("picture", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    png = with_few_colours(draw(arguments.report))
    if len(png) > MAX_BYTES:
        sys.exit(f"{arguments.picture}: {len(png)} bytes, more than {MAX_BYTES}; not written")
    arguments.picture.write_bytes(png)
    print(f"{arguments.picture}: {len(png)} bytes")


if __name__ == "__main__":
    main()
