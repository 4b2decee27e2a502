"""`ensemble.json`: members, how often each counts, and the scores of each and of their mean.

It is also what makes a folder a model: `read_ensemble` gives the members and their weights, to
average their outputs on other clips.
"""

from dataclasses import dataclass, field
from typing import Literal

from pipeline import storage
from pipeline.errors import UserError
from trainer.studies.ensemble.members import Member
from trainer.studies.ensemble.settings import Average, ChoiceMetric, Outputs
from trainer.studies.shared import FailedRun, Figures, read_runs, resolve_run

FILE = "ensemble.json"
_REMEDY = "run the ensemble's command again"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberEntry:
    """A member."""

    name: str
    """Unique, as in the table."""
    run: str
    """Its run folder, relative to the ensemble's if inside it."""
    outputs: Outputs = "last"
    count: storage.Count = 1
    """How often it counts in the mean; 0: not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickEntry:
    """A pick of `--choose`, and the score of the mean from then on."""

    member: str
    score: storage.Share


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceResult:
    """How the members were chosen, and the scores on the clips that they were chosen on."""

    name: str
    """Name of the clip set."""
    metric: ChoiceMetric
    picks: list[PickEntry]
    """In order; those up to the best score count."""
    members: dict[str, Figures]
    all: Figures
    """Of the mean of all members, each counted once."""
    ensemble: Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class PaperEnsemble:
    """Members that make one of the paper's ensembles."""

    name: str
    """`Ensemble-S` or `Ensemble-M`."""
    members: list[str]
    scores: Figures


@dataclass(frozen=True, kw_only=True, slots=True)
class EnsembleResult:
    """Members and their ensemble on one clip set: the document `ensemble.json`."""

    format_version: Literal[1] = 1
    runs: list[str]
    """The members' run folders, each once, relative to the ensemble's if inside it."""
    name: str
    """Name of the clip set."""
    diverged: list[str] = field(default_factory=list)
    """Run folders that would be members, had their training not diverged."""
    failed: list[FailedRun] = field(default_factory=list)
    """Runs that failed otherwise."""
    average: Average = "scores"
    entries: list[MemberEntry] = field(default_factory=list)
    """In the order of `members`; empty in files of older versions, where each run counts once."""
    members: dict[str, Figures]
    """Scores of each member, by its name."""
    mean: Figures
    std: Figures
    ensemble: Figures
    all: Figures | None = None
    """Of the mean of all members, each counted once, if some were chosen."""
    choice: ChoiceResult | None = None
    paper: list[PaperEnsemble] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How often each member counts, by its name."""
        if not self.entries:
            return dict.fromkeys(self.members, 1)
        return {entry.name: entry.count for entry in self.entries}


@dataclass(frozen=True, kw_only=True, slots=True)
class Ensemble:
    """An ensemble as a model."""

    folder: str
    average: Average
    counts: dict[str, int]
    """How often each member counts, at least once, by its name."""
    members: dict[str, Member]
    """By their names."""

    @property
    def weights(self) -> dict[str, float]:
        """The share of each member in the mean, by its name; their sum is 1."""
        total = sum(self.counts.values())
        return {name: count / total for name, count in self.counts.items()}


def is_ensemble(folder: str) -> bool:
    """Whether a folder holds an ensemble, and is no run."""
    names = ("run.json", FILE)
    is_run, has_result = (storage.exists(storage.join(folder, name)) for name in names)
    return has_result and not is_run


def read_ensemble(folder: str) -> Ensemble:
    """The members of an ensemble that count, and how to average them.

    Raises:
        UserError: there is no ensemble, or its `ensemble.json` is damaged.
    """
    path = storage.join(folder, FILE)
    try:
        result = read_result(path)
    except FileNotFoundError as error:
        raise UserError(folder, f"no ensemble there (no {FILE})", "name its folder") from error
    entries = result.entries or [
        MemberEntry(name=name, run=run)
        for name, run in zip(result.members, result.runs, strict=True)
    ]
    counted = [entry for entry in entries if entry.count]
    if not counted:
        raise UserError(path, "damaged: no member counts", _REMEDY)
    return Ensemble(
        folder=folder,
        average=result.average,
        counts={entry.name: entry.count for entry in counted},
        members={
            entry.name: Member(run=resolve_run(entry.run, folder), outputs=entry.outputs)
            for entry in counted
        },
    )


def read_result(path: str) -> EnsembleResult:
    """Read an `ensemble.json`.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    return storage.read_document(path, EnsembleResult, _REMEDY)


def former_members(runs: list[str], output: str) -> list[str]:
    """Runs of an earlier result in `output`, if any, that are not among these."""
    return [run for run in read_runs(storage.join(output, FILE)) if run not in runs]
