"""Published weights of timm's models, from Hugging Face's hub.

In: a timm model name. Out: the backbone with its weights.
"""

import logging

import timm
from torch import nn

from pipeline.errors import UserError, first_line


def create_from_hub(backbone: str) -> nn.Module:
    """A timm backbone with its published weights, from the hub or its local cache.

    Args:
        backbone: timm model name, with or without a tag (`deit_tiny_patch16_224.fb_in1k`).

    Raises:
        UserError: no weights are published for it, or the download failed.
    """
    client = logging.getLogger("huggingface_hub")
    level = client.level
    # It warns of every retry; the error below reports the last failure.
    client.setLevel(logging.ERROR)
    try:
        return timm.create_model(backbone, pretrained=True, num_classes=0)
    # The hub client, the HTTP library below it and the file readers share no base class.
    except Exception as error:
        published = timm.get_pretrained_cfg(backbone)
        source = (published and published.hf_hub_id) or backbone
        raise UserError(
            "model.pretrained",
            f"could not download the weights {source}: {first_line(error)}",
            "set model.weights_file to a copy of them (.safetensors, .pth or .pt), or "
            "model.pretrained=false to train from random weights",
        ) from error
    finally:
        client.setLevel(level)


def ambiguous_weights(backbone: str) -> list[str]:
    """Full names of the weights that a name without a tag may mean, those that timm takes first.

    Empty if the name has a tag, or if timm has only one set of weights for it.
    """
    if "." in backbone:
        return []
    names: list[str] = timm.list_pretrained(f"{backbone}.*")
    published = timm.get_pretrained_cfg(backbone)
    if published is None or len(names) < 2:
        return []
    default = f"{backbone}.{published.tag}"
    return [default, *(name for name in names if name != default)]
