"""The page of a search: its runs as a table and as parallel coordinates, and their curves.

In: the folder of a search. Out: `search.html` in it, one file that needs no network.
"""

from pathlib import Path

from pipeline import storage
from pipeline.errors import UserError
from pipeline.pages import page
from pipeline.terminal import units
from trainer.report.figures import METRIC_TITLES
from trainer.report.search_figures import colours, search_plots
from trainer.run.history import read_history
from trainer.studies.search.record import SearchRecord, read_record
from trainer.studies.search.result import caption, ranked, score_names, show
from trainer.studies.search.space import parse_space

_TEMPLATE = Path(__file__).with_name("search_page.html.jinja")
FILE = "search.html"


def write_search_page(output: str) -> str:
    """Draw the page of the search in a folder; returns its path.

    Raises:
        UserError: there is no search, or a file of it is damaged.
    """
    record = read_record(output)
    if record is None:
        raise UserError(output, "no search there (no search.json)")
    texts = [f"{setting}={text}" for setting, text in record.space.items()]
    space = parse_space(texts, record.base())
    scored = [run for run in record.trials if run.scores]
    curves = {run.number: read_history(storage.join(output, run.folder)).epochs for run in scored}
    plots = search_plots(record, space, curves)
    path = storage.join(output, FILE)
    values = {
        "record": record,
        "best": record.best_run,
        "runs": ranked(record),
        "score_titles": {name: METRIC_TITLES[name] for name in score_names(record)},
        "colours": colours(record),
        "places": {
            run.number: {each.setting: each.share(run.settings[each.setting]) for each in space}
            for run in record.trials
        },
        "tiles": _tiles(record),
        "meaning": caption(record),
        "show": show,
        "parallel": plots[0] if plots else None,
        "others": plots[1:],
    }
    page.write_page(path, _TEMPLATE, values, plots)
    return path


def _tiles(record: SearchRecord) -> list[dict[str, object]]:
    """The best run at a glance."""
    best = record.best_run
    ended = sum(run.state in ("finished", "stopped") for run in record.trials)
    tiles: list[dict[str, object]] = []
    if best is not None:
        score = units.number(best.scores[record.metric])
        details = [f"run {best.number}, epoch {best.scored_epoch}", f"on {record.chosen_by}"]
        title = f"{METRIC_TITLES[record.metric]} of the best"
        tiles.append({"label": title, "value": score, "details": details})
        tiles += [
            {"label": setting, "value": show(value), "details": [record.space[setting]]}
            for setting, value in best.settings.items()
        ]
    details = [f"{ended} with scores", record.strategy]
    return [*tiles, {"label": "Runs", "value": f"{len(record.trials)}", "details": details}]
