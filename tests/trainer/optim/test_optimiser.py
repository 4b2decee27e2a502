"""The optimiser against PyTorch's own."""

import pytest
import torch
from torch.nn import Parameter

from trainer.optim.optimiser import make_optimiser
from trainer.optim.settings import OptimiserName, OptimiserSettings

LR, EPS = 1e-2, 1e-8


@pytest.mark.parametrize(
    ("name", "reference"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_equal_pytorchs_optimisers(
    name: OptimiserName, reference: type[torch.optim.Adam], weight_decay: float
) -> None:
    """In float64, with gradients down to the size of eps, so that no setting hides in rounding."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    ours, theirs = Parameter(start.clone()), Parameter(start.clone())
    optimiser = make_optimiser([ours], OptimiserSettings(name=name, weight_decay=weight_decay))
    expected = reference(
        [theirs], lr=LR, betas=(0.95, 0.999), eps=EPS, weight_decay=weight_decay, foreach=False
    )
    for group in optimiser.param_groups:
        group["lr"] = LR
    for _ in range(5):
        noise = torch.randn(6, generator=generator, dtype=torch.float64)
        ours.grad = noise * 10.0 ** torch.arange(-8, -2)
        theirs.grad = ours.grad.clone()
        optimiser.step()
        expected.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
