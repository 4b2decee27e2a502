"""Which clips of an evaluation the run was trained on: their scores say little about other clips.

In: a run and the clips to score. Out: a note with their number; empty if there are none.
"""

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from pipeline.errors import UserError
from pipeline.terminal.units import counted
from trainer.data.clip_columns import ClipIds
from trainer.data.clips import ClipSet
from trainer.run.run_folder import RunInfo, read_recipe


def note_trained_on(run_path: str, run: RunInfo, dataset: PreparedDataset, clips: ClipSet) -> str:
    """How many of the clips the run was trained on, by their ids.

    Args:
        run_path: the run.
        run: what it is; of the training of an imported model nothing is known.
        dataset: that the clips are of, maybe not the one that the run was trained on.
        clips: the clips to score.
    """
    if run.imported_from is not None:
        return ""
    settings = read_recipe(run_path, run).data
    try:
        if clips.data_fingerprint != run.data.fingerprint:
            dataset = open_dataset(run.data.path)
            if dataset.card.fingerprint != run.data.fingerprint:
                raise UserError(dataset.path, "was corrected or prepared anew since")
        trained = dataset.select(
            settings.train_split, except_folds=settings.untrained_folds, names=["id"]
        )
    except UserError as error:
        return f"which of these clips the run was trained on is unknown ({error})"
    num_trained = ClipIds(trained["id"].chunks).num_shared(clips.ids)
    if not num_trained:
        return ""
    share = (
        f"{num_trained:,} of " if num_trained < len(clips) else "all " if num_trained > 1 else ""
    )
    return (
        f"{share}{counted(len(clips), 'clip')} {'was' if num_trained == 1 else 'were'} trained on, "
        "so their scores say little about other clips"
    )
