"""Ray Train's trainer without a helper that can end a training that is well.

Ray 2.60 has no option for it: the private `_create_default_callbacks` is overridden here.
"""

from typing import Any

from ray.train.torch import TorchTrainer

UNWANTED = "PlacementGroupCleanerCallback"


class Trainer(TorchTrainer):  # type: ignore[misc]
    """`TorchTrainer` without its `PlacementGroupCleaner`.

    That helper asks the Ray it happens to find on the machine whether the training still lives. If
    this is another than the one in use, it takes the resources from a training that does. What it
    is for, a lost controller, ends this process and with it what Ray holds for it.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback).__name__ != UNWANTED]
