"""Compiles the blocks of a transformer, a graph for each batch shape.

PyTorch 2.11 has no public settings for the number of graphs, nor for whether DDP splits them: both
are set in `torch._dynamo.config`, for the whole process, only here.
"""

import torch
from torch import nn

MAX_GRAPHS = 256
"""Batch shapes that a run may meet: about six for each length bucket, full and last batches."""


def compile_blocks(blocks: nn.Sequential) -> None:
    """Compile each block in place, which keeps the names in the state dict.

    Only `forward` is compiled, without the hooks by which FSDP gathers a block's weights.
    """
    # A graph for each shape: an epoch's last batch would else trigger a graph for any size, which
    # is slower.
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    # DDP already averages gradients block by block; this would split the blocks further.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)
