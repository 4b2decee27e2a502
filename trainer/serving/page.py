"""The page for people: three files, none of which holds data or is made anew for a request.

Its script asks the server for all that it shows. So the page itself needs no token, and its content
security policy allows neither inline scripts nor any other server.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.pages import page as pages

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_FOLDER = Path(__file__).parent
_COMMON_STYLE = Path(pages.__file__).parent / "style.css"


@dataclass(frozen=True, kw_only=True, slots=True)
class PageFile:
    """A file of the page."""

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """The files by their paths on the server."""
    style = _COMMON_STYLE.read_bytes() + (_FOLDER / "page.css").read_bytes()
    return {
        "/": PageFile(content=(_FOLDER / "page.html").read_bytes(), media_type="text/html"),
        "/page.css": PageFile(content=style, media_type="text/css"),
        "/page.js": PageFile(
            content=(_FOLDER / "page.js").read_bytes(), media_type="text/javascript"
        ),
    }
