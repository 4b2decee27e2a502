"""The page of a search: what it says, and how it looks and works in a browser."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import OfflineBrowser, open_browser, wait_until
from tests.support.errors import refused
from tests.support.prepared import tiny_recipe
from tests.support.reports import HOSTILE, write_data, write_run
from trainer.report.search_figures import colours, search_plots
from trainer.report.search_page import write_search_page
from trainer.run.history import read_history
from trainer.studies.search.record import (
    AshaSettings,
    SearchRecord,
    SearchRun,
    read_record,
    write_record,
)
from trainer.studies.search.space import parse_space

SPACE = {
    "schedule.lr": "log:1e-6:1e-3",
    "optimiser.name": "adam,adamw",
    "train.batch_size": "4,8,16",
}


def run_of(number: int, rate: float, name: str, size: int, **rest: Any) -> SearchRun:
    settings = {"schedule.lr": rate, "optimiser.name": name, "train.batch_size": size}
    return SearchRun(number=number, folder=f"{number:03d}", settings=settings, **rest)


def scores(accuracy: float) -> dict[str, float | None]:
    return {"mAP": accuracy / 2, "mAUC": 0.5, "d_prime": None, "accuracy": accuracy}


def make_record(**changes: Any) -> SearchRecord:
    runs = [
        run_of(1, 1e-4, "adam", 4, state="finished", epochs=3, scored_epoch=3, scores=scores(0.5)),
        run_of(2, 1e-5, "adamw", 8, state="finished", epochs=3, scored_epoch=3, scores=scores(0.8)),
        run_of(3, 3e-6, "adamw", 16, state="stopped", epochs=1, scored_epoch=1, scores=scores(0.1)),
        run_of(4, 9e-4, "adam", 4, state="diverged", reason=HOSTILE[0]),
        run_of(5, 2e-4, "adam", 4),
    ]
    values: dict[str, Any] = {
        "recipe": HOSTILE[1],
        "settings": tiny_recipe().to_json(),
        "data": HOSTILE[5],
        "data_fingerprint": "0",
        "strategy": "asha",
        "space": SPACE,
        "seed": 0,
        "asha": AshaSettings(),
        "metric": "accuracy",
        "chosen_by": "train-fold2",
        "eval_split": "eval",
        "fold": 2,
        "unused_folds": (1,),
        "recipe_evaluates_on": "train-fold1",
        "are_reported": False,
        "best": 2,
        "trials": runs,
    }
    return SearchRecord(**values | changes)


@pytest.fixture
def search(tmp_path: Path) -> Path:
    data = write_data(str(tmp_path / "data"))
    for number, num_epochs in ((1, 3), (2, 3), (3, 1)):
        run = tmp_path / "search" / f"{number:03d}"
        write_run(str(run), data, num_epochs=num_epochs, seed=number)
    write_record(str(tmp_path / "search"), make_record())
    return tmp_path / "search"


@pytest.fixture(scope="module")
def browser() -> Iterator[OfflineBrowser]:
    with open_browser() as opened:
        yield opened


def test_figures_show_each_run_that_has_a_score(search: Path) -> None:
    record = make_record()
    space = parse_space([f"{key}={text}" for key, text in SPACE.items()], record.base())
    curves = {n: read_history(str(search / f"{n:03d}")).epochs for n in (1, 2, 3)}
    parallel, *settings, by_epoch = search_plots(record, space, curves)
    assert len(settings) == 3
    lines = {line["name"]: line for line in parallel.figure["data"]}
    assert lines.keys() == {"run 1", "run 2", "run 3"}
    assert lines["run 2"]["y"] == pytest.approx([1 / 3, 1.0, 0.5, 1.0])
    assert lines["run 1"]["y"] == pytest.approx([2 / 3, 0.0, 0.0, 4 / 7])
    assert lines["run 3"]["line"]["dash"] == "dot"
    assert list(lines)[-1] == "run 2", "the best is above the others"
    assert [len(line["x"]) for line in by_epoch.figure["data"]] == [1, 3, 3]
    assert [dot["x"] for dot in settings[0].figure["data"]] == [[3e-6], [1e-4], [1e-5]]
    assert settings[0].figure["layout"]["xaxis"]["type"] == "log"
    assert settings[1].figure["layout"]["xaxis"]["categoryarray"] == ["adam", "adamw"]
    assert len(set(colours(record).values())) == 3


def test_search_without_a_score_has_a_page_without_figures(tmp_path: Path) -> None:
    write_record(str(tmp_path), make_record(best=None, trials=make_record().trials[3:]))
    page = Path(write_search_page(str(tmp_path))).read_text()
    assert "No run is finished" in page
    assert "plotly.js v" not in page


def test_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, "search.json"):
        write_search_page(str(tmp_path))
    assert read_record(str(tmp_path)) is None


def test_same_search_gives_the_same_bytes(search: Path) -> None:
    first = Path(write_search_page(str(search))).read_bytes()
    assert Path(write_search_page(str(search))).read_bytes() == first


@pytest.mark.parametrize("width_px", [400, 1200])
def test_page_in_a_browser(search: Path, browser: OfflineBrowser, width_px: int) -> None:
    path = Path(write_search_page(str(search)))
    opened = browser.open(path, width_px=width_px, colour_scheme="dark", is_phone=width_px == 400)
    page = opened.page
    wait_until(page, "document.documentElement.dataset.drawn === '5'")
    assert (opened.errors, opened.requests, opened.dialogs) == ([], [], [])
    assert page.evaluate("document.documentElement.scrollWidth") == width_px
    rows = page.locator("tbody tr")
    numbers = [row.locator("th").inner_text() for row in rows.all()]
    assert numbers == ["2", "1", "3", "5", "4"], "best first"
    assert HOSTILE[0] in rows.last.inner_text()

    opacity = (
        "Object.fromEntries(document.querySelector('[data-figure=parallel]').data"
        ".map((trace) => [trace.name, trace.opacity ?? 1]))"
    )
    button = page.locator("button[data-mark='run-1']")
    button.focus()
    page.keyboard.press("Enter")
    assert page.evaluate(opacity) == {"run 1": 1, "run 2": 0.1, "run 3": 0.1}
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    assert set(page.evaluate(opacity).values()) == {1}

    page.locator("thead button").first.click()
    assert [row.locator("th").inner_text() for row in rows.all()] == ["1", "2", "3", "4", "5"]
    page.close()
