"""A recipe: all settings of a run.

Sections are settings classes, which their stages own. A setting that a recipe leaves out has the
default from there.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from trainer.checkpoints.settings import AveragingSettings
from trainer.data.settings import (
    AugmentSettings,
    DataSettings,
    LoaderSettings,
    SamplerSettings,
)
from trainer.model.settings import ModelSettings
from trainer.optim.settings import OptimiserSettings, ScheduleSettings
from trainer.recipe.settings import PublishedSettings, TrainSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """The settings of one run."""

    name: str
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    augment: AugmentSettings = field(default_factory=AugmentSettings)
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    published: PublishedSettings = field(default_factory=PublishedSettings)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """Every setting with its value, by section; NaN as null."""
        return {
            section: {key: _plain(value) for key, value in dataclasses.asdict(settings).items()}
            for section, settings in self._sections()
        }

    def _sections(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in SECTIONS]


SECTIONS: dict[str, type] = {
    name: kind for name, kind in get_type_hints(Recipe).items() if kind is not str
}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    return list(value) if isinstance(value, tuple) else value
