"""Loads a state dict into a model, whole or not at all.

In: a state dict and a model. Steps: check every name and shape and, of weights from outside, every
value. Out: the model with these weights. A missing or unexpected name or another shape is an error.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from pipeline.errors import UserError
from trainer.checkpoints.names import IMAGE_CLASSIFIERS
from trainer.checkpoints.state_files import name_list


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a timm state dict into a timm backbone without classifier.

    Args:
        backbone: made by timm with `num_classes=0`.
        state: its image classifiers (`head`, `head_dist`) are ignored.
        source: path of the state dict, for the error.

    Raises:
        UserError: names or shapes differ from the backbone's, or values are not finite floats.
    """
    kept = {name: value for name, value in state.items() if not name.startswith(IMAGE_CLASSIFIERS)}
    check_values(kept, source)
    load_exactly(backbone, kept, source=source)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load a state dict whose names and shapes must all match.

    Args:
        source: path of the state dict, for the error.

    Raises:
        UserError: lists missing and unexpected names, and those of another shape.
    """
    if problem := misfit(module.state_dict(), state):
        raise UserError(source, f"the weights do not fit the model: {problem}")
    module.load_state_dict(state)


def misfit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Missing and unexpected names of a state dict, and those of another shape; empty if none."""
    problems = [
        name_list("missing", expected.keys() - state.keys()),
        name_list("unexpected", state.keys() - expected.keys()),
        name_list("of another shape", _shape_differences(expected, state)),
    ]
    return "; ".join(filter(None, problems))


def check_values(state: Mapping[str, Tensor], source: str) -> None:
    """Reject weights that are not finite floats.

    Raises:
        UserError: names the first that is not of floats, or not finite in float32.
    """
    for name, value in state.items():
        if not value.is_floating_point():
            dtype = str(value.dtype).removeprefix("torch.")
            raise UserError(source, f"{name}: must be of floats, got {dtype}", "save it as float32")
        if not value.float().isfinite().all():
            raise UserError(
                source,
                f"{name}: holds NaN or infinite numbers",
                "use a checkpoint from before the training diverged",
            )


def _shape_differences(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} {list(state[name].shape)} instead of {list(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
