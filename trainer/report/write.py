"""Run folders to one self-contained HTML page.

In: run folders, or those of ensembles and cross-validations, local or s3://. Steps: read what each
run wrote (`runs`); put it side by side (`sections`); render `page.html.jinja`. Out: one file that
needs no network.

The page is a function of what was read: no clock, so the same runs give the same bytes.
"""

import itertools
from pathlib import Path

from pipeline import storage
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.plots import Plot
from trainer.report.runs import Row, load_run, member_paths, read_ensembles, run_names
from trainer.report.sections import make_sections

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_report(runs: list[str], *, output: str | None = None) -> str:
    """Write the report of one or more runs.

    Args:
        runs: run folders, local or s3://, or those of ensembles and cross-validations, which
            stand for their runs; the first one's examples and data set are shown.
        output: the page to write, a path that ends with .html; `report.html` in the first folder
            by default.

    Returns:
        The path of the page.

    Raises:
        UserError: no run was given, a folder is not one of a run, a file of it is damaged, or
            `output` is no place for a page.
    """
    if not runs:
        raise UserError("report", "no run was given", "name one or more run folders")
    if output and not output.endswith(".html"):
        raise UserError(
            "--out", f"{output}: must end with .html", "give the page a file of its own"
        )
    folders = list(dict.fromkeys(storage.absolute(path) for path in runs))
    paths = list(dict.fromkeys(itertools.chain.from_iterable(map(member_paths, folders))))
    loaded = [load_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    target = storage.absolute(output) if output else storage.join(folders[0], "report.html")
    sections = make_sections(loaded) | {"ensembles": read_ensembles(folders)}
    page.write_page(target, _TEMPLATE, sections, _plots(sections))
    return target


def _plots(sections: Row) -> list[Plot | None]:
    """Every figure of the page."""
    names = ("classes", "confusions", "data", "durations")
    return [*sections["curves"], *(sections[name].get("plot") for name in names)]
