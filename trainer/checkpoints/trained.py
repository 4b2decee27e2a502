"""The weights that a run's training has left, by name."""

from trainer.checkpoints.checkpoint import load_last
from trainer.checkpoints.paths import check_weights, weights_path
from trainer.checkpoints.settings import Weights
from trainer.checkpoints.state_files import State, read_state


def read_trained(run_path: str, weights: Weights) -> State:
    """Weights of a run.

    Raises:
        UserError: the run lacks them, or they are damaged.
    """
    if weights == "last":
        return load_last(run_path).model
    check_weights(run_path, weights)
    return read_state(weights_path(run_path, weights))
