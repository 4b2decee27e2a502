"""Writes the report of runs, one self-contained HTML page.

In: folders of runs, ensembles and cross-validations, local or in a bucket. Steps: read the runs
(`runs`); compare them (`sections`); render `page.html.jinja`. Out: one file that needs no network.

The page depends only on these folders, not on a clock, so the same runs give the same bytes.
"""

import itertools
from pathlib import Path

from pipeline import storage
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.pages.plots import Plot
from trainer.report.ensembles import ensemble_notes, read_ensembles
from trainer.report.runs import (
    Row,
    diverged_paths,
    failed_paths,
    load_run,
    member_paths,
    run_names,
)
from trainer.report.sections import make_sections

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_report(runs: list[str], *, output: str | None = None) -> str:
    """Write the report of one or more runs.

    Args:
        runs: folders of runs, or of ensembles and cross-validations for all their runs, local or
            in a bucket; the page shows examples and the data set of the first run.
        output: path of the page, which ends with .html; by default `report.html` in the first
            folder.

    Returns:
        The path of the page.

    Raises:
        UserError: no runs are given, a folder is no run, a file in it is damaged, or `output` does
            not end with .html.
    """
    if not runs:
        raise UserError("report", "no run was given", "name one or more run folders")
    if output and not output.endswith(".html"):
        raise UserError("--out", f"{output}: must end with .html", "name a file for the page")
    folders = list(dict.fromkeys(storage.absolute(path) for path in runs))
    paths = list(dict.fromkeys(itertools.chain.from_iterable(map(member_paths, folders))))
    loaded = [load_run(path, name) for path, name in zip(paths, run_names(paths), strict=True)]
    target = storage.absolute(output) if output else storage.join(folders[0], "report.html")
    sections = make_sections(loaded) | {
        "ensembles": read_ensembles(folders),
        "ensemble_notes": ensemble_notes(folders),
        "failed": {path: why for folder in folders for path, why in failed_paths(folder).items()},
        "diverged": list(itertools.chain.from_iterable(map(diverged_paths, folders))),
    }
    page.write_page(target, _TEMPLATE, sections, _plots(sections))
    return target


def _plots(sections: Row) -> list[Plot | None]:
    """All figures of the page."""
    names = ("classes", "confusions", "data", "durations")
    return [*sections["curves"], *(sections[name].get("plot") for name in names)]
