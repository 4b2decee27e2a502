"""What a search is, and what became of its runs: `search.json`, and `stopped.json` in a run.

`search.json` is written before the first run and again at the end. The same command resumes by it,
and another search in the same folder is refused.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from pipeline import storage
from pipeline.errors import UserError
from trainer.recipe.parse import make_recipe
from trainer.recipe.recipe import Recipe
from trainer.run.run_folder import MAY_DIFFER
from trainer.studies.shared import Figures

RESULT = "search.json"
_STOPPED = "stopped.json"

Strategy = Literal["random", "grid", "asha"]
State = Literal["finished", "stopped", "diverged", "failed", "waiting"]
"""Of a run. `stopped`: early, by ASHA. `waiting`: not begun, or interrupted."""
Metric = Literal["accuracy", "mAP", "mAUC", "d_prime"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AshaSettings:
    """When ASHA stops runs."""

    first_epoch: storage.Ordinal = 1
    """First epoch after which runs are compared."""
    factor: storage.Ordinal = 3
    """The best of so many runs goes on; they are compared again after so many times the epochs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRun:
    """A run of the search."""

    number: storage.Ordinal
    """From 1."""
    folder: str
    """Within that of the search."""
    settings: dict[str, Any]
    """The chosen ones, by `section.key`."""
    state: State = "waiting"
    epochs: storage.Count = 0
    """Epochs that are trained and evaluated."""
    scored_epoch: storage.Count = 0
    """The epoch that the scores are of; 0: none."""
    scores: Figures = field(default_factory=dict)
    reason: str = ""
    """Why it diverged or failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchRecord:
    """The document `search.json`."""

    format_version: Literal[1] = 1
    recipe: str
    """Its name."""
    settings: dict[str, dict[str, Any]]
    """Of the recipe, by section, as it is without the search."""
    data: str
    """The prepared data set."""
    data_fingerprint: str
    strategy: Strategy
    space: dict[str, str]
    """Values or range of each setting, as the user gave them."""
    seed: storage.Count
    asha: AshaSettings | None = None
    metric: Metric
    chosen_by: str
    """Name of the clips that the runs are evaluated on."""
    eval_split: str
    fold: storage.Count
    unused_folds: tuple[storage.Ordinal, ...] = ()
    recipe_evaluates_on: str
    """Name of the clips that the recipe itself evaluates on."""
    are_reported: bool
    """Whether it chose by the very clips that the recipe reports on."""
    best: storage.Ordinal | None = None
    """Number of the best run."""
    edges: list[str] = field(default_factory=list)
    """Settings whose best value is at the edge of their range."""
    trials: list[SearchRun]
    runs: list[str] = field(default_factory=list)
    """Folders of the runs that have scores."""
    diverged: list[str] = field(default_factory=list)
    """Folders of those that diverged."""

    @property
    def best_run(self) -> SearchRun | None:
        """The best finished run."""
        return next((run for run in self.trials if run.number == self.best), None)

    def base(self) -> Recipe:
        """The recipe without the search."""
        return make_recipe(self.recipe, self.settings, where=RESULT)


def record_path(output: str) -> str:
    """Path of a search's document."""
    return storage.join(output, RESULT)


def write_record(output: str, record: SearchRecord) -> None:
    """Write `search.json`, with the folders of runs for `report`."""
    listed = replace(
        record,
        runs=[run.folder for run in record.trials if run.scores],
        diverged=[run.folder for run in record.trials if run.state == "diverged"],
    )
    storage.write_json(record_path(output), asdict(listed))


def read_record(output: str) -> SearchRecord | None:
    """What `write_record` wrote; None if there is no search.

    Raises:
        UserError: it is damaged.
    """
    remedy = "restore it, or give another --out"
    try:
        return storage.read_document(record_path(output), SearchRecord, remedy)
    except FileNotFoundError:
        return None


def check_same_search(output: str, before: SearchRecord, now: SearchRecord) -> None:
    """Refuse to go on with a search of something else.

    Raises:
        UserError: names the first difference.
    """
    remedy = "give another --out, or remove this search"
    if before.data_fingerprint != now.data_fingerprint:
        raise UserError(output, "the search there was on other data", remedy)
    for section, keys in now.settings.items():
        for key, value in keys.items():
            name = f"{section}.{key}"
            old = before.settings.get(section, {}).get(key)
            if old != value and not MAY_DIFFER & {section, name}:
                what = f"the search there was started with {name} = {old!r}, not {value!r}"
                raise UserError(output, what, remedy)
    names = {
        "space": "--space",
        "strategy": "--strategy",
        "seed": "--seed",
        "chosen_by": "clips to choose by",
        "unused_folds": "folds that are not used",
    }
    if now.strategy == "asha":
        names |= {"metric": "--metric", "asha": "--first-epoch and --factor"}
    for key, name in names.items():
        old, new = getattr(before, key), getattr(now, key)
        if old != new:
            what = f"the search there was started with {name} {_shown(old)}, not {_shown(new)}"
            raise UserError(output, what, remedy)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{setting}={spec}" for setting, spec in value.items())
    if isinstance(value, AshaSettings):
        return f"{value.first_epoch} and {value.factor}"
    return str(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stopped:
    """`stopped.json` in the folder of a run."""

    format_version: Literal[1] = 1
    epoch: storage.Ordinal


def mark_stopped(run_path: str, epoch: int) -> None:
    """Mark a run as stopped after an epoch, so that a resumed search does not go on with it."""
    storage.write_json(storage.join(run_path, _STOPPED), asdict(_Stopped(epoch=epoch)))


def is_stopped(run_path: str) -> bool:
    """Whether a run is marked as stopped.

    Raises:
        UserError: the mark is damaged.
    """
    path = storage.join(run_path, _STOPPED)
    try:
        storage.read_document(path, _Stopped, "remove it to go on with the run")
    except FileNotFoundError:
        return False
    return True
