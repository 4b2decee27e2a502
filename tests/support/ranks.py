"""Several ranks on this machine, joined by gloo, without Ray."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch.multiprocessing.spawn import start_processes

from trainer.training.world import World


def run_ranks(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(world, *arguments)` in a process per rank; an error of any is raised here.

    The function must be found by its name in a module; what it finds out it writes to a file.
    """
    # The imports take seconds: they are done once, in a process that the ranks are forked from.
    multiprocessing.set_forkserver_preload(["trainer.training.loop"])
    with tempfile.TemporaryDirectory() as folder:
        start_processes(  # type: ignore[no-untyped-call]
            _run_rank,
            (world_size, str(Path(folder) / "store"), function, arguments),
            nprocs=world_size,
            start_method="forkserver",
        )


def _run_rank(
    rank: int,
    world_size: int,
    store: str,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
    )
    try:
        function(World(rank=rank, size=world_size), *arguments)
    finally:
        torch.distributed.destroy_process_group()
