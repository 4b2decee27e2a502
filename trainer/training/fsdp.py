"""A model shared out among the ranks: its weights, gradients and optimiser state (FSDP2).

In: a model that all ranks hold whole and alike. Steps: each rank keeps its part of every tensor; a
block is put together while it computes. Out: the same model for less memory, and what a checkpoint
takes: whole state dicts, which do not tell how a model was shared out.

`torch.distributed.checkpoint.state_dict` gathers as sparingly, but on CPUs it hands out the weights
themselves where a copy is written during training, and it steps an optimiser that has no state yet.
Its optimiser states have names where checkpoints have numbers, and it takes no averages.
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


def shard(ast: AST, world: World) -> AST:
    """Share out a model in place, before its optimiser is made; gradients are averaged."""
    ast.to(world.device)
    group = torch.distributed.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, world.device.type)
    for module in (*ast.blocks, ast):
        sharded = fully_shard(module, mesh=mesh)
        # Gloo has sums, but no means.
        sharded.set_force_sum_reduction_for_comms(world.device.type == "cpu")
    return ast


def gathered(value: Tensor) -> Tensor:
    """A shared-out tensor whole, on its device; all ranks call it together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_copy(value: Any, *, keep: bool) -> Any:
    """A state dict whole, in memory of its own on the CPU, which training does not change.

    All ranks call it together. It is made one tensor at a time, and those that do not `keep` it
    only send their parts: their result has None for tensors.
    """
    if isinstance(value, Tensor):
        whole = gathered(value.detach()) if keep or isinstance(value, DTensor) else value
        return whole.to("cpu", copy=True) if keep else None
    if isinstance(value, dict):
        return {key: whole_copy(one, keep=keep) for key, one in value.items()}
    return [whole_copy(one, keep=keep) for one in value] if isinstance(value, list) else value


def load_model(ast: AST, state: Mapping[str, Tensor]) -> None:
    """Load a whole or shared-out state dict into a model, shared out or not."""
    ast.load_state_dict(shared_out(state, ast.state_dict()))


def load_optimiser(optimiser: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load the whole state of an optimiser; moments are shared out as their weights are."""
    weights = [one for group in optimiser.param_groups for one in group["params"]]
    state = {
        number: {
            name: _as(value, weights[number]) if value.ndim else value
            for name, value in entries.items()
        }
        for number, entries in saved["state"].items()
    }
    optimiser.load_state_dict({**saved, "state": state})


def shared_out(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> State:
    """A state dict on the device of another one, and shared out as that is."""
    return {
        name: _as(value, like[name]) if name in like else value for name, value in state.items()
    }


def _as(value: Tensor, like: Tensor) -> Tensor:
    value = value.to(like.device)
    if isinstance(value, DTensor) or not isinstance(like, DTensor):
        return value
    # All ranks have it whole: each takes its own part.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
