"""The patches of a spectrogram: projection, positional embedding and patchout.

In: a timm backbone and the settings of a model. Out: its patch projection and its positional
embedding, adapted to one channel and another patch grid; and draws of patchout (Koutini et al.,
"Efficient training of audio transformers with patchout", Interspeech 2022).

Where the paper and the code its authors released differ, this follows the code: the weights of
the three colour channels are summed into one (the paper says averaged).

Shapes: F mels, N patches, P class tokens, D width, M kept patches; f, t rows and columns of the
patch grid.
"""

import logging

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.settings import ModelSettings

_POSITION_STD = 0.02
_logger = logging.getLogger(__name__)


def patch_projection(backbone: VisionTransformer, settings: ModelSettings) -> nn.Conv2d:
    """One-channel patch projection, [D, 1, patch_frequency, patch_time].

    It starts from the backbone's weights summed over its three channels, so that one channel gives
    what three equal channels give in the backbone. Without pretrained weights of this patch shape
    it has torch's default initialisation, as in the authors' code.
    """
    shape = (settings.patch_frequency, settings.patch_time)
    stride = (settings.stride_frequency, settings.stride_time)
    projection = nn.Conv2d(1, backbone.embed_dim, kernel_size=shape, stride=stride)
    source = backbone.patch_embed.proj
    if not settings.pretrained:
        return projection
    if source.kernel_size != shape:
        _logger.warning(
            "%s has patches of %s, not %s: the patch projection starts from random weights",
            *(settings.backbone, source.kernel_size, shape),
        )
        return projection
    projection.load_state_dict(
        {"weight": source.weight.detach().sum(dim=1, keepdim=True), "bias": source.bias.detach()}
    )
    return projection


def position_embedding(
    backbone: VisionTransformer, settings: ModelSettings, num_mels: int
) -> Tensor:
    """Positional embedding [1, P + N, D] for the input's grid, adapted or random."""
    if settings.pretrained and settings.position_embedding == "adapt":
        assert backbone.pos_embed is not None
        return adapt_position_embedding(
            backbone.pos_embed.detach(),
            num_class_tokens=backbone.num_prefix_tokens,
            source=backbone.patch_embed.grid_size,
            target=settings.grid(num_mels),
        )
    num_tokens = backbone.num_prefix_tokens + settings.num_patches(num_mels)
    entries = torch.empty(1, num_tokens, backbone.embed_dim)
    return nn.init.trunc_normal_(entries, std=_POSITION_STD)


def adapt_position_embedding(
    embedding: Tensor, *, num_class_tokens: int, source: tuple[int, int], target: tuple[int, int]
) -> Tensor:
    """Fit a positional embedding to another patch grid, as the authors' code does.

    The class tokens' entries are kept. An axis that is too long is cut to its middle, one that is
    too short is interpolated linearly: ImageNet's 24 x 24 becomes AudioSet's 12 x 101 by cutting
    in frequency and interpolating in time.

    Args:
        embedding: [1, P + f t, D] for the source grid, frequency first.
        num_class_tokens: P.
        source: (f, t) of `embedding`.
        target: (f, t) of the result.

    Returns:
        [1, P + f t, D] for the target grid; `embedding` is not changed.
    """
    class_entries, entries = embedding[:, :num_class_tokens], embedding[:, num_class_tokens:]
    grid = entries.reshape(1, *source, -1).permute(0, 3, 1, 2)
    # Bilinear interpolation is separable: the order of the axes does not change the result.
    for axis, size in zip((2, 3), target, strict=True):
        grid = _fit_axis(grid, axis, size)
    return torch.cat([class_entries, grid.flatten(2).transpose(1, 2)], dim=1)


def draw_kept_patches(
    settings: ModelSettings,
    grid: tuple[int, int],
    *,
    generator: torch.Generator | None,
    device: torch.device,
) -> Tensor:
    """The patches that one training step keeps, as sorted indices [M] into the flattened grid.

    Drops whole columns (times) and rows (frequencies) first, then a share of the rest, as in
    PaSST, which also draws one set for all clips of a batch.

    Args:
        grid: patches in frequency and in time, (f, t).
        generator: of the device; None: torch's global one.
    """

    def choose(size: int, num: int) -> Tensor:
        return torch.randperm(size, generator=generator, device=device)[:num].sort().values

    rows = choose(grid[0], grid[0] - settings.patchout_frequency)
    columns = choose(grid[1], grid[1] - settings.num_columns_out(grid[1]))
    kept = (rows[:, None] * grid[1] + columns).flatten()
    return kept[choose(len(kept), len(kept) - int(settings.patchout_share * len(kept)))]


def _fit_axis(grid: Tensor, axis: int, size: int) -> Tensor:
    current = grid.shape[axis]
    if size <= current:
        # Both halves are rounded down, as in the authors' code, which matters for an odd size.
        return grid.narrow(axis, current // 2 - size // 2, size)
    shape = [size if dim == axis else grid.shape[dim] for dim in (2, 3)]
    return functional.interpolate(grid, size=shape, mode="bilinear", align_corners=False)
