"""How the workers of a training on several nodes join in a process group: at a port of the first.

PyTorch opens the port on every interface, to anybody.
"""

from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig

from trainer.on_ray.notices import listen


@dataclass
class JoinByPort(TorchConfig):  # type: ignore[misc]
    """A process group whose workers meet at a port of the first one."""

    listens: bool = False

    @property
    def backend_cls(self) -> type:
        return _JoinByPort


class _JoinByPort(TorchConfig().backend_cls):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def on_start(self, worker_group: Any, backend_config: JoinByPort) -> None:
        super().on_start(worker_group, backend_config)
        if backend_config.listens:
            worker_group.execute(listen)
