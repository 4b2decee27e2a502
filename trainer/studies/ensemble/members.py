"""Members of an ensemble, and what their predictions on a set of clips are called.

In: run folders, and a split of a data set or what the runs held out. Out: the members'
predictions, or which of them have yet to be computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipeline import storage
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from trainer.checkpoints.progress import best_epoch
from trainer.data.clips import ClipSet
from trainer.run.evaluation_name import evaluation_name
from trainer.run.history import read_history
from trainer.run.run_folder import read_recipe, read_run
from trainer.scores.predictions import (
    Predictions,
    Source,
    metrics_path,
    predictions_name,
    predictions_path,
    read_metrics,
    read_predictions,
)
from trainer.studies.ensemble.settings import Outputs


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A run, and which of its outputs count."""

    run: str
    """Its folder."""
    outputs: Outputs = "last"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberClips:
    """Clips that all members are scored on."""

    name: str
    """What the ensemble's predictions on them are called."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What those of a run by its last weights are called, by its folder; left out: the same."""

    def predictions_of(self, member: Member) -> str:
        """What the predictions of a member on these clips are called."""
        return predictions_name(self.names.get(member.run, self.name), member.outputs)


def make_members(runs: Sequence[str], outputs: Sequence[Outputs] = ("last",)) -> list[Member]:
    """Each of these outputs of each run.

    Raises:
        UserError: a run or an output is named twice.
    """
    for what, values in (("run", runs), ("output", outputs)):
        if len(set(values)) < len(values):
            raise UserError("", f"a {what} can be a member only once, got {' '.join(values)}")
    return [Member(run=run, outputs=kind) for run in runs for kind in outputs]


def member_names(members: Sequence[Member]) -> list[str]:
    """Unique names: the last part of the run's path, or the path if runs share it, and the outputs
    if they are not the last weights'."""
    runs = dict.fromkeys(member.run for member in members)
    short = {run: run.rpartition("/")[2] for run in runs}
    if len(set(short.values())) < len(short):
        short = {run: run for run in runs}
    return [
        short[member.run] + ("" if member.outputs == "last" else f" {member.outputs}")
        for member in members
    ]


def name_clips(runs: Sequence[str], dataset: PreparedDataset, clips: ClipSet) -> MemberClips:
    """The names of predictions of runs on these clips, which may be of another data set.

    Raises:
        UserError: a run does not exist, or is damaged.
    """
    names = {run: evaluation_name(read_run(run), dataset, clips, "last") for run in runs}
    return MemberClips(name=next(iter(names.values())), names=names)


def lacks_predictions(
    member: Member,
    clips: MemberClips,
    *,
    precision: str | None = None,
    function: str | None = None,
) -> bool:
    """Whether a member's predictions are missing, or are of an earlier end of its training.

    Args:
        member: the member.
        clips: on which clips.
        precision: what they must be computed in; None: in any.
        function: what must have made scores of outputs, `sigmoid` or `softmax`; None: any.

    Raises:
        UserError: the metrics beside them are damaged.
    """
    name = clips.predictions_of(member)
    paths = (predictions_path(member.run, name), metrics_path(member.run, name))
    if not all(map(storage.exists, paths)):
        return True
    source = read_metrics(member.run, name).source
    if precision not in (None, source.precision) or function not in (None, source.score_function):
        return True
    return _is_old(member, source)


def _is_old(member: Member, source: Source) -> bool:
    """Whether scores are of an earlier end of a run, after which it went on."""
    epochs = read_history(member.run).epochs
    if not epochs or source.checkpoint_step is None:
        return False
    if member.outputs == "best":
        recipe = read_recipe(member.run, read_run(member.run))
        return source.epoch != best_epoch(epochs, recipe.train.select_by).epoch
    return source.checkpoint_step < epochs[-1].step


def read_member(member: Member, clips: MemberClips) -> Predictions:
    """The stored predictions of a member.

    Raises:
        UserError: they are missing or damaged.
    """
    return replace(read_predictions(member.run, clips.predictions_of(member)), name=clips.name)
