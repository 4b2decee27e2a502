"""`evaluate` on an ensemble's folder: scores clips with all members and averages their outputs."""

import argparse

from pipeline.errors import UserError
from trainer.commands.member_scores import complete_predictions


def evaluate_ensemble(arguments: argparse.Namespace) -> None:
    """Score clips with the members of an ensemble, and print the table.

    Members whose stored predictions are up to date are not evaluated again.

    Raises:
        UserError: as `read_ensemble`, `check_evaluation` and `score_elsewhere`; weights are chosen,
            which the ensemble has chosen.
    """
    from rich.console import Console

    from pipeline.dataset.prepared import note_unchecked, open_dataset
    from trainer.run.run_folder import held_out, read_run
    from trainer.scores.predictions import predictions_path
    from trainer.studies.ensemble.clips import open_clips
    from trainer.studies.ensemble.result import read_ensemble
    from trainer.studies.ensemble.score import score_elsewhere
    from trainer.studies.ensemble.table import ensemble_table

    folder = arguments.run_folder
    if arguments.weights != "last":
        raise UserError("--weights", "an ensemble has chosen the weights of its members")
    ensemble = read_ensemble(folder)
    members = list(ensemble.members.values())
    first = members[0].run
    info = read_run(first)
    dataset = open_dataset(arguments.data or info.data.path)
    note_unchecked(dataset)
    split, fold = arguments.split, arguments.fold
    if split is None:
        split, own_fold = held_out(first, info)
        fold = own_fold if fold is None else fold
    on = open_clips(dataset, split, fold or 0)
    clips = complete_predictions(
        members, on, arguments, precision=arguments.precision, scores=arguments.scores
    )
    scores, mean = score_elsewhere(ensemble, clips)
    title = f"{folder} on {clips.name}"
    Console().print(ensemble_table(title, scores, ensemble.counts, mean))
    print(predictions_path(folder, clips.name))
