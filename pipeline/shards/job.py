"""What the tasks of a data set are given, beside the plan of their shard."""

from dataclasses import dataclass

from pipeline.shards.parts import work_folder
from pipeline.shards.settings import READS_AHEAD, PrepareSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildJob:
    """What all shards of a data set share."""

    output: str
    """The data set's folder."""
    settings: PrepareSettings
    """Of the first shards: a later one may have higher limits."""
    reads_ahead: int = READS_AHEAD
    """Files fetched at once, ahead of the computation."""

    @property
    def work(self) -> str:
        """The folder of the plan, part files and markers."""
        return work_folder(self.output)
