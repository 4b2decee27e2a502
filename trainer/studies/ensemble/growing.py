"""The ensemble so far, while other members still train.

In: finished runs, one after the other. Out: a message with the scores of the new member, and of the
mean of all that are there.
"""

import logging

from pipeline.errors import UserError
from trainer.run.run_folder import run_name
from trainer.scores.predictions import Predictions
from trainer.studies.ensemble.average import average_predictions
from trainer.studies.ensemble.members import Member, MemberClips, read_member
from trainer.studies.ensemble.score import figures_of
from trainer.studies.ensemble.settings import Average
from trainer.studies.shared import Figures

_logger = logging.getLogger(__name__)
_SHOWN = ("mAP", "accuracy")


class GrowingEnsemble:
    """Says after each member how the ensemble stands."""

    def __init__(self, clips: MemberClips, num_members: int, average: Average = "scores") -> None:
        self._clips = clips
        self._num_members = num_members
        self._average = average
        self._members: dict[str, Predictions] = {}

    def start_with(self, run_path: str) -> None:
        """Take in a run that was finished before."""
        self._take_in(run_path)

    def add(self, run_path: str) -> None:
        """Take in a run that has just finished, and say how the ensemble stands."""
        mean = self._take_in(run_path)
        if mean is not None and len(self._members) < self._num_members:
            _logger.info(
                "%s is finished: %s; ensemble of %d of %d so far: %s",
                run_name(run_path),
                _text(figures_of(self._members[run_path])),
                len(self._members),
                self._num_members,
                _text(figures_of(mean)),
            )

    def _take_in(self, run_path: str) -> Predictions | None:
        """The mean with the run; None if it cannot be averaged, and the end of the step says why"""
        try:
            member = read_member(Member(run=run_path), self._clips)
            members = {**self._members, run_path: member}
            mean = average_predictions(members, self._average)
        except UserError as error:
            _logger.debug("not in the ensemble so far: %s", error)
            return None
        self._members = members
        return mean


def _text(figures: Figures) -> str:
    shown = {name: figures[name] for name in _SHOWN}
    return ", ".join(
        f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in shown.items()
    )
