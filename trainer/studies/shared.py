"""Shared parts of ensembles and cross-validations: runs of one recipe, and one result.

In: overrides, run folders, and the scores of each run. Out: an error for an override that conflicts
with an option; run folders as a result's JSON names them; mean and standard deviation; table cells.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pipeline import storage
from pipeline.errors import UserError
from trainer.scores.over_runs import mean_and_deviation

Figures = dict[str, storage.Number | None]
"""Scores by their names; None: undefined."""


def refuse_override(overrides: Sequence[str], setting: str, option: str) -> None:
    """Reject an override of a setting that differs from run to run.

    Raises:
        UserError: one of the overrides, `section.key=value`, sets it.
    """
    for override in overrides:
        if override.partition("=")[0].strip() == setting:
            raise UserError(
                f"--set {override}", f"{option} sets {setting} for each run", "drop this --set"
            )


def runs_to_json(run_paths: Sequence[str], output: str) -> list[str]:
    """Run folders as a result in `output` names them: relative to it if inside."""
    return [path.removeprefix(f"{output}/") for path in run_paths]


def resolve_run(name: str, output: str) -> str:
    """The run folder that a result in `output` names."""
    is_whole = name.startswith("/") or storage.is_remote(name)
    return name if is_whole else storage.join(output, name)


def read_runs(result_path: str) -> list[str]:
    """The run folders that `ensemble.json` or `cross_validation.json` names.

    Empty if the file is missing or names none.
    """
    return _folders(result_path, "runs")


def read_diverged(result_path: str) -> list[str]:
    """The run folders that a result names as diverged, as `read_runs`."""
    return _folders(result_path, "diverged")


def read_failed(result_path: str) -> dict[str, str]:
    """Why runs failed, by their folders, as `read_runs`."""
    failed = _read(result_path).failed
    return {resolve_run(one.run, _folder(result_path)): one.reason for one in failed}


def check_result(result_path: str) -> None:
    """Check that a result names its runs, if there is one.

    Raises:
        UserError: it is damaged.
    """
    with suppress(FileNotFoundError):
        storage.read_document(result_path, _Members, "run the command that wrote it again")


def _folders(result_path: str, key: str) -> list[str]:
    names: list[str] = getattr(_read(result_path), key)
    return [resolve_run(name, _folder(result_path)) for name in names]


def _folder(result_path: str) -> str:
    return result_path.rpartition("/")[0]


def _read(result_path: str) -> "_Members":
    try:
        return storage.parse_document(storage.read_bytes(result_path), _Members)
    except (FileNotFoundError, storage.DocumentError):
        return _Members(runs=[])


@dataclass(frozen=True, kw_only=True, slots=True)
class FailedRun:
    """A run in a result that has no scores, as its training failed."""

    run: str
    reason: str
    """In one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Members:
    """The run folders in a result."""

    runs: list[str]
    diverged: list[str] = field(default_factory=list)
    failed: list[FailedRun] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class NotScored:
    """Runs that a result names, but that have no scores, by their folders."""

    diverged: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    """Those that failed otherwise, and why, in one line."""

    @property
    def runs(self) -> set[str]:
        """All of them."""
        return {*self.diverged, *self.failed}

    def failed_to_json(self, output: str) -> list[FailedRun]:
        """The failed runs as a result in `output` names them."""
        runs = runs_to_json([*self.failed], output)
        reasons = self.failed.values()
        return [FailedRun(run=run, reason=why) for run, why in zip(runs, reasons, strict=True)]


def figures_over_runs(runs: Sequence[Figures]) -> tuple[Figures, Figures]:
    """Mean and sample standard deviation of each score over the runs.

    None if a run lacks the score; a single run has no deviation.
    """
    both = {name: mean_and_deviation([figures[name] for figures in runs]) for name in runs[0]}
    means = {name: mean for name, (mean, _) in both.items()}
    return means, {name: deviation for name, (_, deviation) in both.items()}


def cells_without_scores(state: str, num_cells: int) -> list[str]:
    """The cells of a run that has none: it diverged or failed."""
    return [state, *["-"] * (num_cells - 1)]


def table_cells(figures: Figures) -> list[str]:
    """The scores as cells of a table row."""
    return ["-" if value is None else f"{value:.4f}" for value in figures.values()]
