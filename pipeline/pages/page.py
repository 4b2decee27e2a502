"""Render a template and figures as one self-contained HTML page.

In: a template that extends `base.html.jinja`, its values, and the figures it shows. Steps: render,
with every value escaped; embed plotly.js, if there is a figure. Out: the page. It shows no time of
writing, so the same values give the same bytes.
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
from pipeline.manifest.splits import TRAIN_SPLIT
from pipeline.pages.plots import Plot
from pipeline.terminal import units

_FOLDER = Path(__file__).parent


def write_page(
    path: str, template: Path, values: dict[str, Any], plots: Iterable[Plot | None] = ()
) -> None:
    """Render a page and write it.

    Args:
        path: the page, local or in a bucket.
        template: a file that extends `base.html.jinja`.
        values: what it shows, by the names in the template.
        plots: its figures; None in place of a figure without data.
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
        "number": units.number,
        "count": units.count,
        "counted": units.counted,
        "percent": units.percent,
        "duration": units.duration,
    }
    draw = partial(
        environment.get_template(template.name).render,
        **values,
        figure_json=_script_json(figures),
        plotly_js=get_plotlyjs() if figures else "",
    )
    # Only scripts with the nonce run; whoever chose the labels cannot predict it.
    nonce = hashlib.sha256(draw(nonce="").encode(errors="replace")).hexdigest()[:32]
    storage.write_bytes(path, draw(nonce=nonce).encode(errors="replace"))


def training_first(by_split: dict[str, Any]) -> dict[str, Any]:
    """The same mapping, the training split first."""
    return dict(sorted(by_split.items(), key=lambda item: (item[0] != TRAIN_SPLIT, item[0])))


def _script_json(document: object) -> str:
    """JSON that cannot close the script element around it."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
