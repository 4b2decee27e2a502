"""The mean of the scores of all epochs of a run as predictions: `cum_` in the AST authors' code.

In: a run's newest checkpoint, which holds the sum of the scores of its epochs, and its last
predictions, for the clips. Out: predictions, beside those of the last weights.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import UserError
from trainer.checkpoints.checkpoint import load_last
from trainer.run.history import read_history
from trainer.run.run_folder import read_run
from trainer.scores.metrics import evaluate_scores
from trainer.scores.predictions import predictions_name, read_predictions, write_predictions
from trainer.studies.ensemble.members import Member, MemberClips, lacks_predictions


def write_cumulative(members: Sequence[Member], clips: MemberClips) -> None:
    """Write the predictions of the members that are means over epochs, where they are missing.

    Raises:
        UserError: these are not the clips that the run was evaluated on after each epoch, its
            checkpoint is gone or lacks the sum, or its predictions are.
    """
    for member in members:
        if member.outputs == "cumulative" and lacks_predictions(member, clips):
            name = read_run(member.run).data.eval_name
            if clips.names.get(member.run, clips.name) != name:
                raise UserError(
                    member.run,
                    f"the scores of its epochs are known on {name!r} alone, not on {clips.name!r}",
                    "leave cumulative out of --outputs",
                )
            _write(member.run, name)


def _write(run_path: str, name: str) -> None:
    history, last = read_history(run_path), read_predictions(run_path, name)
    saved = load_last(run_path)
    num_epochs = len(history.epochs)
    if saved.score_sum is None or tuple(saved.score_sum.shape) != last.scores.shape:
        raise UserError(
            run_path, "its checkpoint lacks the scores of its epochs", "leave cumulative out"
        )
    if len(saved.progress.epochs) != num_epochs:
        raise UserError(
            run_path,
            f"its checkpoint is of epoch {len(saved.progress.epochs)}, not of {num_epochs}",
            "run the command that trained it again",
        )
    cumulative = replace(
        last,
        name=predictions_name(name, "cumulative"),
        scores=(saved.score_sum / num_epochs).numpy(),
        source=replace(last.source, weights="cumulative", checkpoint_step=saved.progress.step),
    )
    metrics = evaluate_scores(cumulative.targets, cumulative.scores, cumulative.labels)
    write_predictions(run_path, cumulative, metrics)
