"""FSDP2: weights, gradients and optimiser state spread over the ranks.

In: a model that all ranks hold whole and alike. Steps: each rank keeps its part of every tensor,
and a block is gathered while it computes. Out: the same model in less memory, and whole state dicts
for checkpoints, so that a run may be resumed with another number of ranks or without FSDP.

`torch.distributed.checkpoint.state_dict` saves as much memory, but is not used: on CPUs it returns
the live weights, which training changes while a copy is written; it steps an optimiser that has no
state yet; its optimiser states have names where checkpoints have numbers; it cannot gather
averages.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainer.checkpoints.state_files import State
from trainer.model.ast import AST
from trainer.training.world import World


def apply_fsdp(ast: AST, world: World) -> AST:
    """Apply FSDP to a model in place, before its optimiser is made; gradients are averaged."""
    ast.to(world.device)
    group = torch.distributed.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, world.device.type)
    for module in (*ast.blocks, ast):
        spread = fully_shard(module, mesh=mesh)
        # Gloo has sums, but no means.
        spread.set_force_sum_reduction_for_comms(world.device.type == "cpu")
    return ast


def gathered(value: Tensor) -> Tensor:
    """The whole of a tensor that FSDP spread, on its device; all ranks call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_copy(value: Any, *, keep: bool) -> Any:
    """A whole copy of a state dict on the CPU, which training does not change.

    All ranks call it together. Tensors are gathered one at a time; ranks that do not `keep` the
    copy only send their parts and get None for each tensor.
    """
    if isinstance(value, Tensor):
        whole = gathered(value.detach()) if keep or isinstance(value, DTensor) else value
        return whole.to("cpu", copy=True) if keep else None
    if isinstance(value, dict):
        return {key: whole_copy(entry, keep=keep) for key, entry in value.items()}
    return [whole_copy(entry, keep=keep) for entry in value] if isinstance(value, list) else value


def load_model(ast: AST, state: Mapping[str, Tensor]) -> None:
    """Load a state dict, whole or spread, into a model with or without FSDP."""
    ast.load_state_dict(shard_like(state, ast.state_dict()))


def load_optimiser(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the whole state of an optimiser; moments are spread as their weights are."""
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    state = {
        number: {
            name: _as(value, weights[number]) if value.ndim else value
            for name, value in entries.items()
        }
        for number, entries in saved["state"].items()
    }
    optimiser.load_state_dict({**saved, "state": state})


def shard_like(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """A state dict on the device of another one, and spread as that is."""
    return {
        name: _as(value, like[name]) if name in like else value for name, value in state.items()
    }


def _as(value: Tensor, like: Tensor) -> Tensor:
    value = value.to(like.device)
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    # All ranks have the whole: each takes its part.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
