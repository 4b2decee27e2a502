"""Predictions that members of an ensemble lack: computed on Ray, or from their checkpoints."""

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.commands.session_options import session
from trainer.commands.options import LOADING, workers

if TYPE_CHECKING:
    from trainer.model.settings import Precision
    from trainer.optim.settings import ScoreFunction
    from trainer.studies.ensemble.clips import SplitClips
    from trainer.studies.ensemble.members import Member, MemberClips

_logger = logging.getLogger(__name__)


def complete_predictions(
    members: "Sequence[Member]",
    on: "SplitClips",
    arguments: argparse.Namespace,
    *,
    precision: "Precision | None" = None,
    scores: "ScoreFunction | None" = None,
) -> "MemberClips":
    """Evaluate the members that lack predictions on some clips; says what these are called.

    Ray starts only if there are any.

    Args:
        members: the members.
        on: the clips.
        arguments: of the command, with those for workers.
        precision: what members must be computed in; None: as they were trained.
        scores: what must make scores of their outputs; None: as in their training.

    Raises:
        UserError: as `check_evaluation` and `write_cumulative`.
    """
    from trainer.run.checks import check_evaluation
    from trainer.studies.ensemble.cumulative import write_cumulative
    from trainer.studies.ensemble.members import lacks_predictions, member_names, name_clips

    clips = name_clips([member.run for member in members], on.dataset, on.clips)
    write_cumulative(members, clips)
    missing = {
        name: (member.run, member.outputs)
        for member, name in zip(members, member_names(members), strict=True)
        if member.outputs != "cumulative"
        and lacks_predictions(member, clips, precision=precision, function=scores)
    }
    place = on.dataset.path, on.split, on.fold
    for run, weights in missing.values():
        check_evaluation(run, *place, weights)
    if missing:
        _logger.info("evaluates on %s: %s", clips.name, ", ".join(missing))
        with session(arguments, loading=LOADING):
            from trainer.on_ray.train import run_evaluations

            run_evaluations(
                list(missing.values()),
                *place,
                workers(arguments),
                precision=precision,
                scores=scores,
            )
    return clips
