"""Templates and figures to one HTML page that holds everything it needs.

In: a template that extends `base.html.jinja`, its values, and the figures it shows. Steps: render,
with every value escaped; embed plotly.js, if there is a figure. Out: the page's text, a function of
what came in: no clock, so the same values give the same bytes.
"""

import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pipeline import storage
from pipeline.manifest.manifest import TRAIN_SPLIT
from pipeline.pages.plots import Plot

_FOLDER = Path(__file__).parent
_NO_BREAK = "\N{NO-BREAK SPACE}"
_UNITS = (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12))


def write_page(
    path: str, template: Path, values: dict[str, Any], plots: Iterable[Plot | None] = ()
) -> None:
    """Render a page and put it in place.

    Args:
        path: the page, local or s3://.
        template: a file that extends `base.html.jinja`.
        values: what it shows, by the names in the template.
        plots: its figures; None stands for one that there is no data for.
    """
    figures = {plot.key: plot.figure for plot in plots if plot is not None}
    environment = Environment(
        loader=FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "count": count,
        "percent": percent,
        "duration": duration,
    }
    draw = partial(
        environment.get_template(template.name).render,
        **values,
        figure_json=_script_json(figures),
        plotly_js=get_plotlyjs() if figures else "",
    )
    # Only scripts that carry it run: unforeseeable to whoever chose the labels.
    nonce = hashlib.sha256(draw(nonce="").encode(errors="replace")).hexdigest()[:32]
    storage.write_bytes(path, draw(nonce=nonce).encode(errors="replace"))


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A whole number with separators, a dash for None."""
    return "–" if value is None else f"{value:,.0f}"


def percent(share: float | None) -> str:
    """A share, 0 to 1, in percent; only what is whole is 100 %, and only nothing is 0 %."""
    if share is None:
        return "–"
    if share in (0, 1):
        text = f"{100 * share:.0f}"
    elif share < 0.0005:
        text = "< 0.1"
    else:
        text = "> 99.9" if share >= 0.9995 else f"{100 * share:.1f}"
    return f"{text} %".replace(" ", _NO_BREAK)


def size(value_bytes: float) -> str:
    """Bytes as people say them: `812 kB`, `52 MB`, `1.3 TB`."""
    unit = next((unit for unit in _UNITS if value_bytes < 999.5 * unit[1]), _UNITS[-1])
    scaled = value_bytes / unit[1]
    return f"{scaled:.{1 if scaled < 9.95 else 0}f}{_NO_BREAK}{unit[0]}"


def duration(value_s: float | None) -> str:
    """Seconds as people say them: `0.8 s`, `47 s`, `2 min 5 s`, `25 min`, `32 h 47 min`."""
    if value_s is None:
        return "–"
    if value_s < 60:
        return f"{value_s:.1f} s" if value_s < 10 else f"{value_s:.0f} s"
    minutes, seconds = divmod(round(value_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if minutes < 10 else f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"


def training_first(by_split: dict[str, Any]) -> dict[str, Any]:
    """The same, the training split before the others."""
    return dict(sorted(by_split.items(), key=lambda item: (item[0] != TRAIN_SPLIT, item[0])))


def _script_json(document: object) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
