"""The processes of a run, as a user asks for them."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """The processes of a run."""

    num: int = 1
    """How many."""
    cpus: int = 1
    """CPUs of each, and threads of torch where there is no GPU."""
    use_gpu: bool | None = None
    """Whether each has a GPU; None: if the cluster has any."""
