"""The Audio Spectrogram Transformer: normalised log-mel spectrograms in, logits out.

Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, section 2, built
from the modules of a timm DeiT or ViT. Steps: cut the spectrogram into overlapping patches,
project each linearly, put the class tokens before them, add the positional embedding, run the
transformer's blocks, average the class tokens, normalise, project to the classes.
In training some of the patches can be left out of a step (Koutini et al., "Efficient training of
audio transformers with patchout", Interspeech 2022), the same of all clips in it.
Out: one logit a class; sigmoid or softmax is the loss's affair. Initialisation draws from torch's
global seed only.

Where the paper and the code its authors released differ, this follows the code: the weights of
the three colour channels are summed into one (the paper says averaged), and the head is a
LayerNorm before the Linear.

Shapes: B batch, T frames, F mels, N patches, P class tokens, D width, C classes;
f, t rows and columns of the patch grid.
"""

import difflib
import logging
from dataclasses import dataclass, replace
from typing import cast

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from pipeline.errors import UserError
from trainer.model.precision import in_float32

_POSITION_STD = 0.02
_MAX_GRAPHS = 256
"""Shapes of batches that a run may meet: about six of each length bucket, whole and at the end."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Shape of the model and where its first weights come from.

    Raises:
        ValueError: a value out of range.
    """

    backbone: str = "deit_base_distilled_patch16_384"
    """timm name of a DeiT (two class tokens if distilled) or ViT (one), with or without a tag."""
    pretrained: bool = True
    """Start from the backbone's ImageNet weights, which timm fetches from Hugging Face's hub or
    takes from its cache (HF_HUB_OFFLINE=1: only from there); false: from random ones."""
    weights_file: str = ""
    """Weights to start from instead of timm's download, local or s3://: the backbone's timm state
    dict (.safetensors, .pth, .pt); or a whole AST, as a run folder, an exported folder, a folder of
    transformers or a .pth of the AST authors'. An AST must have as many mel bins, and the same
    patch_frequency and patch_time; its positional embedding is fitted to other strides and lengths,
    and its head is kept if it knows all of the classes. Empty: none."""
    patch_frequency: int = 16
    """Height of a patch in mel bins. Another patch shape than the backbone's has no pretrained
    weights: the patch projection is then random, all else is not."""
    patch_time: int = 16
    """Width of a patch in frames; see `patch_frequency`."""
    stride_frequency: int = 10
    """Mel bins from one patch to the next; less than the patch: they overlap."""
    stride_time: int = 10
    """Frames from one patch to the next."""
    num_frames: int = 1024
    """Length of the input in frames of 10 ms (the original's target length)."""
    position_embedding: str = "adapt"
    """Its start: "adapt" cuts and interpolates the pretrained one, "reinitialise" draws it at
    random, as in the paper's ablation. Without pretrained weights it is random in both cases."""
    layer_norm_eps: float = 0.0
    """The eps of the backbone's LayerNorms; 0: the backbone's own, 1e-6 in DeiT."""
    head_norm_eps: float = 1e-5
    """The eps of the head's LayerNorm; models of transformers have the backbone's here, too."""
    depth: int = 0
    """Number of transformer blocks, the backbone's first ones; 0: all of them."""
    patchout_time: int = 0
    """Columns of patches (times) that each training step leaves out, fewer in proportion where its
    input is shorter than num_frames; 0: none."""
    patchout_frequency: int = 0
    """Rows of patches (frequency bands) that each training step leaves out; 0: none."""
    patchout_share: float = 0.0
    """Share of the patches then left that each training step leaves out, wherever they are."""
    checkpoint_activations: bool = False
    """Compute each block once more in the backward pass instead of keeping what is within it: less
    memory, about a third more time."""
    compile: bool = False
    """Compile the blocks by torch.compile, which takes a C++ compiler on CPUs and time at first."""

    def __post_init__(self) -> None:
        self._check_backbone()
        for name in ("patch_frequency", "patch_time", "num_frames"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for axis in ("frequency", "time"):
            patch, stride = getattr(self, f"patch_{axis}"), getattr(self, f"stride_{axis}")
            expected = f"between 1 and patch_{axis} ({patch}), or parts of the input are skipped"
            _check(1 <= stride <= patch, f"stride_{axis}", expected, stride)
        expected = f"at least patch_time ({self.patch_time})"
        _check(self.num_frames >= self.patch_time, "num_frames", expected, self.num_frames)
        choices = ("adapt", "reinitialise")
        position = self.position_embedding
        _check(position in choices, "position_embedding", f"one of {choices}", repr(position))
        _check(self.depth >= 0, "depth", "0 (all blocks) or more", self.depth)
        for name in ("layer_norm_eps", "head_norm_eps"):
            value, lowest = getattr(self, name), 0.0 if name == "layer_norm_eps" else 1e-30
            _check(lowest <= value < 1, name, f"at least {lowest:g} and below 1", value)
        conflict = bool(self.weights_file) and not self.pretrained
        _check(not conflict, "weights_file", "empty if pretrained is false", self.weights_file)
        for name in ("patchout_time", "patchout_frequency"):
            _check(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        columns = self._columns()
        expected = f"below the {columns} columns of patches"
        _check(self.patchout_time < columns, "patchout_time", expected, self.patchout_time)
        share = self.patchout_share
        _check(0 <= share < 1, "patchout_share", "at least 0 and below 1", share)

    def without_weights(self) -> "ModelSettings":
        """The same model with random weights, such as one that others are loaded into."""
        return replace(self, pretrained=False, weights_file="")

    def grid(self, num_mels: int, num_frames: int | None = None) -> tuple[int, int]:
        """Patches in frequency and in time, (f, t), of an input.

        Args:
            num_mels: of the input.
            num_frames: likewise; None: the most, the setting.

        Raises:
            UserError: the patch is higher than the input, or no row of patches is left to train on.
        """
        if num_mels < self.patch_frequency:
            raise UserError(
                f"model.patch_frequency: must be at most the number of mel bins ({num_mels}), "
                f"got {self.patch_frequency}"
            )
        rows = (num_mels - self.patch_frequency) // self.stride_frequency + 1
        if self.patchout_frequency >= rows:
            raise UserError(
                f"model.patchout_frequency: must be below the {rows} rows of patches, "
                f"got {self.patchout_frequency}"
            )
        return rows, self._columns(num_frames)

    def num_patches(self, num_mels: int, num_frames: int | None = None) -> int:
        """N: patches of one input, without the class tokens. Raises as `grid`."""
        rows, columns = self.grid(num_mels, num_frames)
        return rows * columns

    def num_kept_patches(self, num_mels: int, num_frames: int | None = None) -> int:
        """Patches of one input that a training step sees. Raises as `grid`."""
        rows, columns = self.grid(num_mels, num_frames)
        left = (rows - self.patchout_frequency) * (columns - self.num_columns_out(columns))
        return left - int(self.patchout_share * left)

    def num_columns_out(self, columns: int) -> int:
        """Of so many columns of patches those that a training step leaves out.

        `patchout_time` of the most there can be, the same share of fewer, rounded down.
        """
        return self.patchout_time * columns // self._columns()

    def leaves_patches_out(self) -> bool:
        """Whether training steps see only some of the patches."""
        return bool(self.patchout_time or self.patchout_frequency or self.patchout_share)

    def _columns(self, num_frames: int | None = None) -> int:
        return ((num_frames or self.num_frames) - self.patch_time) // self.stride_time + 1

    def _check_backbone(self) -> None:
        try:
            timm.get_pretrained_cfg(self.backbone, allow_unregistered=False)
            known = self.backbone.startswith(("deit_", "vit_"))
        except RuntimeError:
            known = False
        if not known:
            # Only the failing path pays for listing all of timm's names.
            names = [name for family in ("deit_*", "vit_*") for name in timm.list_models(family)]
            near = difflib.get_close_matches(self.backbone, names, n=1)
            hint = f" (near it: {near[0]})" if near else ""
            expected = f"a deit_ or vit_ model of timm{hint}"
            _check(False, "backbone", expected, repr(self.backbone))


class AST(nn.Module):
    """Audio Spectrogram Transformer on the modules of a timm DeiT or ViT; see `build_model`.

    The names in the state dict are timm's, apart from `patch_embed.*` (timm: `patch_embed.proj.*`)
    and the classifier, `head_norm.*` and `head.*`.
    """

    dist_token: nn.Parameter | None

    def __init__(
        self,
        backbone: VisionTransformer,
        settings: ModelSettings,
        *,
        num_classes: int,
        num_mels: int,
    ) -> None:
        super().__init__()
        assert num_classes >= 1
        dist_token = getattr(backbone, "dist_token", None)
        self.settings = settings
        self.input_shape = (settings.num_frames, num_mels)
        self.patchout_seed: int | None = None
        """What the patches of the next training step are drawn by; None: torch's global seed."""
        self.num_class_tokens = 1 if dist_token is None else 2
        self.patch_embed = _patch_projection(backbone, settings)
        self.cls_token = cast(nn.Parameter, backbone.cls_token)
        self.register_parameter("dist_token", dist_token)
        self.pos_embed = nn.Parameter(_position_embedding(backbone, settings, num_mels))
        self.blocks = cast(nn.Sequential, backbone.blocks[: settings.depth or None])
        if settings.compile:
            _compile(self.blocks)
        self.norm = backbone.norm
        self.head_norm = nn.LayerNorm(backbone.embed_dim, eps=settings.head_norm_eps)
        self.head = nn.Linear(backbone.embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of normalised log-mel spectrograms [B, T, F]; raises as `embed`.

        In float32 whatever the blocks compute in: bfloat16 has so few numbers that many clips would
        have the same score, which costs mAP.
        """
        embeddings = self.embed(x)
        with in_float32(x.device):
            return cast(Tensor, self.head(self.head_norm(embeddings.float())))

    def embed(self, x: Tensor) -> Tensor:
        """Clip embeddings [B, D]: the mean of the class tokens after the final norm.

        Args:
            x: normalised log-mel spectrograms [B, T, F]; of fewer frames than the model was built
                for they get the first of its positions in time.

        Raises:
            ValueError: T is more than the model was built for or less than a patch; another F.
        """
        frames, mels = self.input_shape
        shortest = self.settings.patch_time
        if x.ndim != 3 or not shortest <= x.shape[1] <= frames or x.shape[2] != mels:
            raise ValueError(
                f"the model takes inputs [B, {frames} frames, {mels} mels], or of as few as "
                f"{shortest} frames, got {list(x.shape)}; pad or cut the clips, or build it with "
                f"another num_frames"
            )
        grid = self.settings.grid(mels, x.shape[1])
        # Frequency is the image's height, [B, 1, F, T], so that patches are in order of frequency.
        patches = self.patch_embed(x.transpose(1, 2).unsqueeze(1)).flatten(2).transpose(1, 2)
        tokens = torch.cat([*self._class_tokens(len(x)), patches], dim=1) + self._positions(grid)
        if self.training and self.settings.leaves_patches_out():
            tokens = tokens.index_select(1, self._kept_tokens(grid, tokens.device))
        # The norm works on each token alone, so those that are not used need none.
        class_tokens = self._run_blocks(tokens)[:, : self.num_class_tokens]
        return cast(Tensor, self.norm(class_tokens).mean(dim=1))

    def num_parameters(self) -> int:
        """All trained numbers of the model."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The positional embedding [1, P + N, D] of a patch grid, cut to its columns."""
        whole = self.settings.grid(self.input_shape[1])
        if grid == whole:
            return self.pos_embed
        class_entries, entries = self.pos_embed.tensor_split([self.num_class_tokens], dim=1)
        first_columns = entries.reshape(1, *whole, -1)[:, :, : grid[1]].flatten(1, 2)
        return torch.cat([class_entries, first_columns], dim=1)

    def _kept_tokens(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Places of the class tokens and of the patches drawn for this step."""
        generator = None
        if self.patchout_seed is not None:
            generator = torch.Generator(device).manual_seed(self.patchout_seed)
        kept = draw_kept_patches(self.settings, grid, generator=generator, device=device)
        class_tokens = torch.arange(self.num_class_tokens, device=device)
        return torch.cat([class_tokens, self.num_class_tokens + kept])

    def _run_blocks(self, tokens: Tensor) -> Tensor:
        if not (self.settings.checkpoint_activations and torch.is_grad_enabled()):
            return cast(Tensor, self.blocks(tokens))
        for block in self.blocks:
            tokens = checkpoint(block, tokens, use_reentrant=False)
        return tokens

    def _class_tokens(self, num_clips: int) -> list[Tensor]:
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        # Flattened, so that the gradients get the plain strides that DDP wants.
        return [token.flatten().expand(num_clips, 1, -1) for token in tokens]


def adapt_position_embedding(
    embedding: Tensor, *, num_class_tokens: int, source: tuple[int, int], target: tuple[int, int]
) -> Tensor:
    """Fit a positional embedding to another patch grid, as the authors' code does.

    The class tokens' entries are kept. An axis that has more entries than needed is cut to its
    middle, one that has fewer is interpolated linearly: ImageNet's 24 x 24 becomes AudioSet's
    12 x 101 by cutting in frequency and interpolating in time.

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
    """The patches that one training step keeps, as rising places [M] in the flattened grid.

    Whole columns (times) and rows (frequencies) go first, then a share of what is left, as in
    PaSST, which draws one set for all clips of a batch, too.

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
        # Both halves are rounded down, so an odd size leans on an even grid as the authors' does.
        return grid.narrow(axis, current // 2 - size // 2, size)
    shape = [size if dim == axis else grid.shape[dim] for dim in (2, 3)]
    return functional.interpolate(grid, size=shape, mode="bilinear", align_corners=False)


def _compile(blocks: nn.Sequential) -> None:
    """Compile each block in place, so that the names in the state dict stay what they are.

    Without the hooks around it, by which FSDP puts a shared-out block together.
    """
    # Each shape gets a graph of its own: one for all sizes, which an epoch's last batch would bring
    # about, is a slower one.
    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    # DDP shares gradients block by block as it is; this would cut the blocks once more.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks:
        block.forward = torch.compile(block.forward, dynamic=False)


def _patch_projection(backbone: VisionTransformer, settings: ModelSettings) -> nn.Conv2d:
    """One-channel patch projection, [D, 1, patch_frequency, patch_time].

    It starts from the backbone's weights summed over its three channels, which answers to one
    channel as the backbone answers to it three times. Without pretrained weights of this patch
    shape it starts as any convolution of torch, as in the authors' code.
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


def _position_embedding(
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


def _check(valid: bool, name: str, expected: str, value: object) -> None:
    if not valid:
        raise ValueError(f"{name}: must be {expected}, got {value}")
