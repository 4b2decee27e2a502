"""What the predictions of a run on a set of clips are called."""

from pipeline.dataset.prepared import PreparedDataset
from trainer.checkpoints.settings import Weights
from trainer.data.clips import ClipSet
from trainer.run.run_folder import RunInfo
from trainer.scores.predictions import predictions_name


def evaluation_name(
    run: RunInfo, dataset: PreparedDataset, clips: ClipSet, weights: Weights
) -> str:
    """The name of the predictions; on other data it never equals that of the run's own."""
    if clips.data_fingerprint == run.data.fingerprint:
        return predictions_name(clips.name, weights)
    other = f"{dataset.path.rpartition('/')[2]}-{clips.data_fingerprint[:8]}"
    return predictions_name(f"{clips.name}-of-{other}", weights)
