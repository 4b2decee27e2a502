"""The processes that a user asks for, for each run."""

from dataclasses import dataclass

from pipeline.on_ray.settings import WAIT_FOR_NODES_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes of a run."""

    num: int = 1
    """Number of processes; of an elastic run, the most."""
    least: int = 0
    """Of an elastic run, the fewest that it goes on with; 0: the number is fixed."""
    cpus: int = 1
    """CPUs of each; without a GPU also its number of PyTorch threads."""
    use_gpu: bool | None = None
    """Whether each gets a GPU; None: if the cluster has any, or can start any."""
    gpus: float = 1.0
    """GPUs of each, if it gets any. A fraction lets several runs share a GPU; each must then be a
    single process, as NCCL refuses two ranks on one GPU."""
    wait_s: float = WAIT_FOR_NODES_S
    """How long to wait for nodes that an autoscaler starts."""
    kind: str = "worker"
    """What messages call each, and the options that set their number and size."""

    @property
    def fewest(self) -> int:
        """The number that there is room for while the run goes on."""
        return self.least or self.num
