"""Scores an ensemble on one clip set, from the stored predictions of its members.

In: members; the clips that are reported, and those to choose on, if asked. Out: predictions and
`ensemble.json` in the ensemble's folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline import storage
from trainer.scores.metrics import METRICS, Metrics, evaluate_scores
from trainer.scores.predictions import Predictions, write_predictions
from trainer.studies.ensemble.average import average_predictions, warn_of_saturation
from trainer.studies.ensemble.choose import choose
from trainer.studies.ensemble.members import Member, MemberClips, member_names, read_member
from trainer.studies.ensemble.paper import member_recipes_of, paper_ensembles
from trainer.studies.ensemble.result import (
    FILE,
    ChoiceResult,
    Ensemble,
    EnsembleResult,
    MemberEntry,
    PaperEnsemble,
    PickEntry,
)
from trainer.studies.ensemble.settings import Average, ChoiceMetric
from trainer.studies.shared import Figures, NotScored, figures_over_runs, runs_to_json

_Predicted = Mapping[str, Predictions]
"""Predictions of members by their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choosing:
    """How to choose among members."""

    num_picks: int
    metric: ChoiceMetric = "mAP"
    clips: MemberClips
    """Those to choose on."""


def score_ensemble(
    members: Sequence[Member],
    clips: MemberClips,
    output: str,
    *,
    average: Average = "scores",
    choosing: Choosing | None = None,
    not_scored: NotScored | None = None,
) -> EnsembleResult:
    """Average members' predictions on a clip set and write the result to `output`.

    Args:
        members: the members.
        clips: what to score them on.
        output: folder of the ensemble.
        average: what is averaged.
        choosing: how to choose among the members; None: each counts once.
        not_scored: runs that failed.

    Raises:
        UserError: a member lacks these predictions, or they cannot be averaged.
    """
    names = member_names(members)
    predicted = _read(members, names, clips)
    if average == "logits":
        warn_of_saturation(predicted)
    counts = dict.fromkeys(names, 1)
    choice = None
    if choosing is not None:
        on = _read(members, names, choosing.clips)
        counts, choice = _choose(on, choosing, average)
    ensemble = average_predictions(predicted, average, counts)
    scores = {name: figures_of(one) for name, one in predicted.items()}
    mean, std = figures_over_runs(list(scores.values()))
    not_scored = not_scored or NotScored()
    metrics = metrics_of(ensemble)
    result = EnsembleResult(
        runs=runs_to_json(list(dict.fromkeys(member.run for member in members)), output),
        name=clips.name,
        diverged=runs_to_json(not_scored.diverged, output),
        failed=not_scored.failed_to_json(output),
        average=average,
        entries=_entries(members, counts, output),
        members=scores,
        mean=mean,
        std=std,
        ensemble=_headline(metrics),
        all=None if choice is None else figures_of(average_predictions(predicted, average)),
        choice=choice,
        paper=_of_the_paper(members, names, predicted),
    )
    write_predictions(output, ensemble, metrics)
    storage.write_json(storage.join(output, FILE), asdict(result))
    return result


def score_elsewhere(ensemble: Ensemble, clips: MemberClips) -> tuple[dict[str, Figures], Figures]:
    """Average the stored predictions of an ensemble's members on any clips, and write the mean to
    its folder.

    Returns:
        The scores of each member, by its name, and those of the mean.

    Raises:
        UserError: as `score_ensemble`.
    """
    predicted = _read(list(ensemble.members.values()), list(ensemble.members), clips)
    mean = average_predictions(predicted, ensemble.average, ensemble.counts)
    metrics = metrics_of(mean)
    write_predictions(ensemble.folder, mean, metrics)
    return {name: figures_of(one) for name, one in predicted.items()}, _headline(metrics)


def metrics_of(predictions: Predictions) -> Metrics:
    """All metrics of predictions."""
    return evaluate_scores(predictions.targets, predictions.scores, predictions.labels)


def figures_of(predictions: Predictions) -> Figures:
    """The headline metrics of predictions."""
    return _headline(metrics_of(predictions))


def _headline(metrics: Metrics) -> Figures:
    return {name: getattr(metrics, name) for name in METRICS}


def _entries(
    members: Sequence[Member], counts: Mapping[str, int], output: str
) -> list[MemberEntry]:
    runs = runs_to_json([member.run for member in members], output)
    return [
        MemberEntry(name=name, run=run, outputs=member.outputs, count=count)
        for member, run, (name, count) in zip(members, runs, counts.items(), strict=True)
    ]


def _read(members: Sequence[Member], names: Sequence[str], clips: MemberClips) -> _Predicted:
    pairs = zip(names, members, strict=True)
    return {name: read_member(member, clips) for name, member in pairs}


def _choose(
    on: _Predicted, choosing: Choosing, average: Average
) -> tuple[dict[str, int], ChoiceResult]:
    chosen = choose(on, choosing.num_picks, metric=choosing.metric, average=average)
    result = ChoiceResult(
        name=choosing.clips.name,
        metric=choosing.metric,
        picks=[PickEntry(member=pick.member, score=pick.score) for pick in chosen.picks],
        members={name: figures_of(one) for name, one in on.items()},
        all=figures_of(average_predictions(on, average)),
        ensemble=figures_of(average_predictions(on, average, chosen.counts)),
    )
    return {name: chosen.counts[name] for name in on}, result


def _of_the_paper(
    members: Sequence[Member], names: Sequence[str], predicted: _Predicted
) -> list[PaperEnsemble]:
    found = paper_ensembles(member_recipes_of(members, names))
    return [
        PaperEnsemble(
            name=name,
            members=of_it,
            # As published, whatever else is averaged.
            scores=figures_of(average_predictions({one: predicted[one] for one in of_it})),
        )
        for name, of_it in found.items()
    ]
