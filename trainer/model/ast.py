"""The Audio Spectrogram Transformer: normalised log-mel spectrograms in, logits out.

Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, section 2, built
from the modules of a timm DeiT or ViT. Steps: cut the spectrogram into overlapping patches,
project each linearly, put the class tokens before them, add the positional embedding, run the
transformer's blocks, average the class tokens, normalise, project to the classes.
In training some of the patches can be left out of a step (Koutini et al., "Efficient training of
audio transformers with patchout", Interspeech 2022), the same of all clips in it.
Out: one logit a class; sigmoid or softmax is the loss's affair. Initialisation draws from torch's
global seed only.

Where the paper and the code its authors released differ, this follows the code: the head is a
LayerNorm before the Linear; see `trainer.model.patches` for the other difference.

Shapes: B batch, T frames, F mels, N patches, P class tokens, D width, C classes.
"""

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.compile import compile_blocks
from trainer.model.patches import draw_kept_patches, patch_projection, position_embedding
from trainer.model.precision import in_float32
from trainer.model.settings import ModelSettings


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
        self.patch_embed = patch_projection(backbone, settings)
        self.cls_token = cast(nn.Parameter, backbone.cls_token)
        self.register_parameter("dist_token", dist_token)
        self.pos_embed = nn.Parameter(position_embedding(backbone, settings, num_mels))
        self.blocks = cast(nn.Sequential, backbone.blocks[: settings.depth or None])
        if settings.compile:
            compile_blocks(self.blocks)
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
