"""Published weights from the hub that timm downloads from.

In: a timm model name. Out: the backbone with its weights.
"""

import logging

import timm
from torch import nn

from pipeline.errors import UserError, first_line


def create_from_hub(backbone: str) -> nn.Module:
    """A timm backbone with its published weights, from the hub or its local cache.

    Args:
        backbone: timm model name, with or without a tag ("deit_base_distilled_patch16_384").

    Raises:
        UserError: no weights are published for it, or they could not be fetched.
    """
    client = logging.getLogger("huggingface_hub")
    level = client.level
    # It tells of every second try; what ends the last of them is said below.
    client.setLevel(logging.ERROR)
    try:
        return timm.create_model(backbone, pretrained=True, num_classes=0)
    # The hub client, the HTTP library below it and the file readers share no base class.
    except Exception as error:
        published = timm.get_pretrained_cfg(backbone)
        source = (published and published.hf_hub_id) or backbone
        raise UserError(
            "model.pretrained",
            f"could not fetch the weights {source}: {first_line(error)}",
            "give model.weights_file a copy of them (.safetensors, .pth or .pt), or set "
            "model.pretrained=false to train from random weights",
        ) from error
    finally:
        client.setLevel(level)
