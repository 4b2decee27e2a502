"""This process's rank, and the few collectives that training needs.

In a world of one, all are the identity, so that callers need no special case.
"""

from dataclasses import dataclass, field

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

_TEXT_BYTES = 256
"""What ranks share of a text; the rest is cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """One process of a training run."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the ranks."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait for all ranks to come here."""
        float(self.sum(torch.zeros((), device=self.device)))

    def gather(self, rows: Tensor) -> Tensor:
        """`[size * R, ...]`: the `[R, ...]` of all ranks, in rank order; R must be equal."""
        if self.size == 1:
            return rows
        everyone = [torch.empty_like(rows) for _ in range(self.size)]
        torch.distributed.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    def share(self, text: str) -> str:
        """The text of the lowest rank that has any; all ranks call it."""
        data = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
        rows = self.gather(torch.tensor([[*data]], dtype=torch.uint8, device=self.device))
        texts = (bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows.tolist())
        return next(filter(None, texts), "")

    def replicate(self, model: nn.Module) -> nn.Module:
        """The model on this rank's device; DDP averages its gradients over the ranks."""
        model = model.to(self.device)
        return DistributedDataParallel(model) if self.size > 1 else model
