"""Groups of runs that may be averaged: their settings are the same, but for the seed and the fold.

In: runs. Out: groups in the order of their first runs, each with mean and deviation of its scores,
and the settings in which the groups differ. Runs of other settings are compared, never averaged.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from trainer.report.runs import ReportedRun, Row
from trainer.run.run_folder import MAY_DIFFER, read_recipe
from trainer.scores.metrics import METRICS
from trainer.scores.over_runs import mean_and_deviation

_OF_A_RUN = {"train.seed", "data.fold"}
"""Settings that tell the runs of a group apart."""
_NUM_NAMED = 3
"""Most runs whose names make the name of their group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A score over the runs of a group; None if one of them lacks it."""

    mean: float | None
    deviation: float | None
    """Sample standard deviation; None for a single run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs that may be averaged."""

    runs: Sequence[ReportedRun]

    @property
    def name(self) -> str:
        """The names of its runs."""
        names = [run.name for run in self.runs]
        if len(names) <= _NUM_NAMED:
            return ", ".join(names)
        return f"{names[0]} and {len(names) - 1} more"

    @property
    def scores(self) -> dict[str, Score]:
        """Over its runs, by metric, with that of chance."""
        return {key: self._score(key) for key in (*METRICS, "chance_mAP")}

    @property
    def train_s(self) -> float:
        """Mean seconds of training."""
        return math.fsum(run.train_s for run in self.runs) / len(self.runs)

    def values(self, section: str, key: str) -> list[str]:
        """The values of a setting that had an effect, each once."""
        values = [run.setting(section, key) for run in self.runs]
        return list(dict.fromkeys(value for value in values if value is not None))

    def _score(self, key: str) -> Score:
        mean, deviation = mean_and_deviation([getattr(run.final, key) for run in self.runs])
        return Score(mean=mean, deviation=deviation)


def make_groups(runs: Sequence[ReportedRun]) -> list[Group]:
    """The runs by what they are scored on and by their settings."""
    groups: dict[Any, list[ReportedRun]] = {}
    for run in runs:
        groups.setdefault((_clips(run), _settings(run)), []).append(run)
    return [Group(runs=members) for members in groups.values()]


def are_on_same_clips(runs: Sequence[ReportedRun]) -> bool:
    """Whether the runs are scored on one split, or folds of it, so that scores can be compared."""
    return len(set(map(_clips, runs))) == 1


def differences(groups: Sequence[Group]) -> list[Row]:
    """Settings in which groups differ: section, key, and the value in each group."""
    rows = []
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(
        (section, key)
        for run in runs
        for section, keys in run.info.settings.items()
        for key in keys
    )
    for section, key in names:
        values = [group.values(section, key) for group in groups]
        known = [set(of_group) for of_group in values if of_group]
        if any(one != other for one, other in itertools.pairwise(known)):
            shown = [", ".join(of_group) or "–" for of_group in values]
            rows.append({"section": section, "key": key, "values": shown})
    return rows


def _clips(run: ReportedRun) -> tuple[str | None, ...]:
    is_own = run.main_evaluation in (None, run.data.eval_name)
    return run.data.fingerprint, run.data.eval_split, None if is_own else run.main_evaluation


def _settings(run: ReportedRun) -> str:
    """What decides the scores of a run, but for seed and fold, as text that can be compared."""
    settings: Mapping[str, Mapping[str, object]] = run.info.settings
    # An older run may have settings that no longer exist.
    with suppress(UserError):
        # With the defaults of settings that are newer than the run.
        settings = read_recipe(run.path, run.info).to_json()
    deciding = {
        f"{section}.{key}": value
        for section, keys in settings.items()
        for key, value in keys.items()
        if not {section, f"{section}.{key}"} & (MAY_DIFFER | _OF_A_RUN)
        and run.setting(section, key) is not None
    }
    return json.dumps([deciding, run.info.imported_from], sort_keys=True)
