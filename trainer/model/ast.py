"""The Audio Spectrogram Transformer: normalised log-mel spectrograms in, logits out.

Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021, section 2, built
from the modules of a timm DeiT or ViT. Steps: cut the spectrogram into overlapping patches,
project each linearly, prepend the class tokens, add the positional embedding, run the transformer's
blocks, average the class tokens, normalise, project to the classes. Patchout can drop patches in
training steps, the same ones for all clips of a step (Koutini et al., "Efficient training of audio
transformers with patchout", Interspeech 2022). Out: one logit per class; the loss applies sigmoid
or softmax. Initialisation draws only from torch's global seed.

Where the paper and the code its authors released differ, this follows the code: the head has a
LayerNorm before the Linear; see `trainer.model.patches` for the other difference.

Shapes: B batch, T frames, F mels, N patches, P class tokens, D width, C classes.
"""

from typing import cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.model.compile import compile_blocks
from trainer.model.last_block import take_num_outputs
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
        """Seed of patchout in the next training step; None: torch's global seed."""
        self.num_class_tokens = 1 if dist_token is None else 2
        self.patch_embed = patch_projection(backbone, settings)
        self.cls_token = cast(nn.Parameter, backbone.cls_token)
        self.register_parameter("dist_token", dist_token)
        self.pos_embed = nn.Parameter(position_embedding(backbone, settings, num_mels))
        self.blocks = cast(nn.Sequential, backbone.blocks[: settings.depth or None])
        take_num_outputs(self.blocks[-1])
        if settings.compile:
            compile_blocks(self.blocks)
        self.norm = backbone.norm
        self.head_norm = nn.LayerNorm(backbone.embed_dim, eps=settings.head_norm_eps)
        self.head = nn.Linear(backbone.embed_dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of normalised log-mel spectrograms [B, T, F]; raises as `embed`."""
        return self.classify(self.embed(x))

    def classify(self, embeddings: Tensor) -> Tensor:
        """Logits [B, C] of clip embeddings [B, D].

        The head always computes in float32: bfloat16 is so coarse that many clips would tie, which
        costs mAP.
        """
        with in_float32(embeddings.device):
            return cast(Tensor, self.head(self.head_norm(embeddings.float())))

    def embed(self, x: Tensor) -> Tensor:
        """Clip embeddings [B, D]: the mean of the class tokens after the final norm.

        Args:
            x: normalised log-mel spectrograms [B, T, F]; inputs shorter than the model's maximum
                get the first of its positions in time.

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
        # Frequency is the image's height, [B, 1, F, T], so patches are ordered by frequency first.
        patches = self.patch_embed(x.transpose(1, 2).unsqueeze(1)).flatten(2).transpose(1, 2)
        tokens = torch.cat([*self._class_tokens(len(x)), patches], dim=1) + self._positions(grid)
        if self.training and self.settings.leaves_patches_out():
            tokens = tokens.index_select(1, self._kept_tokens(grid, tokens.device))
        # The norm treats each token separately, so only the class tokens need it.
        class_tokens = self._run_blocks(tokens)[:, : self.num_class_tokens]
        return cast(Tensor, self.norm(class_tokens).mean(dim=1))

    def num_parameters(self) -> int:
        """Number of trained parameters."""
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
        """Indices of the class tokens and of the patches kept in this step."""
        generator = None
        if self.patchout_seed is not None:
            generator = torch.Generator(device).manual_seed(self.patchout_seed)
        kept = draw_kept_patches(self.settings, grid, generator=generator, device=device)
        class_tokens = torch.arange(self.num_class_tokens, device=device)
        return torch.cat([class_tokens, self.num_class_tokens + kept])

    def _run_blocks(self, tokens: Tensor) -> Tensor:
        """The blocks' outputs of at least the class tokens, which come first."""
        *others, last = self.blocks
        for block in others:
            tokens = self._run(block, tokens)
        return self._run(last, tokens, self.num_class_tokens)

    def _run(self, block: nn.Module, *arguments: Tensor | int) -> Tensor:
        if self.settings.checkpoint_activations and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *arguments, use_reentrant=False))
        return cast(Tensor, block(*arguments))

    def _class_tokens(self, num_clips: int) -> list[Tensor]:
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        # Flattened, so that gradients get the contiguous strides that DDP expects.
        return [token.flatten().expand(num_clips, 1, -1) for token in tokens]
