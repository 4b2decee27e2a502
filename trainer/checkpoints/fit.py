"""A state dict into a model, whole or not at all.

In: a state dict and the model it is for. Steps: check every name, every shape and, of weights from
outside, every value. Out: the model with these weights. A name too many, too few or of another
shape is an error that says so.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.errors import UserError
from trainer.checkpoints.names import IMAGE_CLASSIFIERS
from trainer.checkpoints.state_files import name_list


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Put a timm state dict into a timm backbone made without classifier, in place.

    Args:
        backbone: made by timm with `num_classes=0`.
        state: the image classifiers in it (`head`, `head_dist`) are left out.
        source: where the state dict comes from, for the error.

    Raises:
        UserError: its names or shapes are not the backbone's, or its values no finite floats.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(IMAGE_CLASSIFIERS)}
    check_values(kept, source)
    load_exactly(backbone, kept, source=source)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict of which every name and shape must fit, in place.

    Args:
        source: where the state dict comes from, for the error.

    Raises:
        UserError: names the missing, the unexpected and those of another shape.
    """
    expected = module.state_dict()
    problems = [
        name_list("missing", expected.keys() - state.keys()),
        name_list("unexpected", state.keys() - expected.keys()),
        name_list("of another shape", _shape_differences(expected, state)),
    ]
    if any(problems):
        raise UserError(
            source, f"the weights do not fit the model: {'; '.join(filter(None, problems))}"
        )
    module.load_state_dict(state)


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that no model computes with.

    Raises:
        UserError: names the first that is not of floats, or not finite in float32.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise UserError(source, f"{name}: must be of floats, got {kind}", "save it as float32")
        if not value.float().isfinite().all():
            raise UserError(
                source,
                f"{name}: holds NaN or infinite numbers",
                "take a checkpoint from before the training diverged",
            )


def _shape_differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
