"""Weights beside the last: averages over epochs and over steps (EMA), and those of the best epoch.

In: a model at the end of an epoch, or after a step. Steps: the weights of each epoch that is to be
averaged, and of the best one so far, are kept in the run's `epochs/`; the mean is taken once the
training is through, entry by entry, as the authors' `wa_model` does. Out: state dicts, as
`.safetensors`; training sees none of them. A restart needs the files of the epochs before it,
which are written before the checkpoint that ends their epoch.
"""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline import storage
from trainer.checkpoints.paths import epoch_name, weights_path
from trainer.checkpoints.state_files import State, encode_state, read_state


def write_weights(run_path: str, name: str, state: Mapping[str, Tensor]) -> None:
    """Write a state dict to the run's `epochs/`, with a checksum."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    storage.write_bytes(weights_path(run_path, name), encode_state(tensors, {}))


def average_epochs(run_path: str, epochs: Sequence[int]) -> State:
    """The plain mean of every entry over the weights of these epochs, on the CPU.

    It is summed in float64: `torch.optim.swa_utils` moves a mean in the weights' own precision.

    Raises:
        UserError: the weights of an epoch are not there, or damaged.
    """
    sums: State = {}
    kinds: dict[str, torch.dtype] = {}
    for epoch in epochs:
        for name, value in read_state(weights_path(run_path, epoch_name(epoch))).items():
            kinds[name] = value.dtype
            sums[name] = sums.get(name, torch.zeros_like(value, dtype=torch.float64)) + value
    return {name: (value / len(epochs)).to(kinds[name]) for name, value in sums.items()}


def remove_other_epochs(run_path: str, kept: Collection[int]) -> None:
    """Delete the weights of all epochs but these."""
    names = {weights_path(run_path, epoch_name(epoch)) for epoch in kept}
    for path in storage.list_files(storage.join(run_path, "epochs")):
        if path.rpartition("/")[2].startswith("epoch-") and path not in names:
            storage.remove(path)


def update_ema(average: State, state: Mapping[str, Tensor], decay: float) -> None:
    """Move the average towards the weights, in place; entries must be of floats."""
    update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    update(list(average.values()), [state[name] for name in average], None)
