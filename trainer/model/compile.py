"""Compiles the blocks of a transformer, a graph for each shape of a batch.

PyTorch 2.11 has no public settings for how many graphs there may be, nor for whether DDP cuts them:
both are set in `torch._dynamo.config`, for the process, here and nowhere else.
"""

import torch
from torch import nn

MAX_GRAPHS = 256
"""Shapes of batches that a run may meet: about six of each length bucket, whole and at the end."""


def compile_blocks(blocks: nn.Sequential) -> None:
    """Compile each block in place, so that the names in the state dict stay what they are.

    Without the hooks around it, by which FSDP puts a shared-out block together.
    """
    # Each shape gets a graph of its own: one for all sizes, which an epoch's last batch would bring
    # about, is a slower one.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    # DDP shares gradients block by block as it is; this would cut the blocks once more.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
