"""Settings of the model, and the size of its patch grid."""

from dataclasses import dataclass, replace
from typing import Literal

from pipeline.errors import MAX_COUNT, SettingValueError, UserError, check_at_most
from trainer.checkpoints.patch_grid import patches_along

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Shape of the model and source of its initial weights.

    Raises:
        ValueError: a value out of range.
    """

    backbone: str = "deit_base_distilled_patch16_384.fb_in1k"
    """timm name of a DeiT (two class tokens if distilled) or ViT (one), with a tag that names its
    weights; without one, timm's choice of them, which is not that of the AST authors for ViTs."""
    pretrained: bool = True
    """Start from the backbone's ImageNet weights, which timm fetches from Hugging Face's hub or
    takes from its cache (HF_HUB_OFFLINE=1: only from there); false: from random weights."""
    weights_file: str = ""
    """Weights to start from instead of timm's download, local or in a bucket: the backbone's timm
    state dict (.safetensors, .pth, .pt); or a whole AST: a run folder, an exported folder, a folder
    of transformers or a .pth of the AST authors. An AST must have as many mel bins, and the same
    patch_frequency and patch_time; its positional embedding is adapted to other strides and
    lengths, and its head is kept if it knows all of the classes. Empty: none."""
    patch_frequency: int = 16
    """Height of a patch in mel bins. If the patch shape differs from the backbone's, the patch
    projection starts from random weights; all else stays pretrained."""
    patch_time: int = 16
    """Width of a patch in frames; see `patch_frequency`."""
    stride_frequency: int = 10
    """Mel bins from one patch to the next; patches overlap if it is below patch_frequency."""
    stride_time: int = 10
    """Frames from one patch to the next."""
    num_frames: int = 1024
    """Length of the input in frames of 10 ms (the original's target length)."""
    position_embedding: str = "adapt"
    """Initial positional embedding: "adapt" cuts and interpolates the pretrained one,
    "reinitialise" draws it at random, as in the paper's ablation. Without pretrained weights it is
    always random."""
    layer_norm_eps: float = 0.0
    """The eps of the backbone's LayerNorms; 0: the backbone's own, 1e-6 in DeiT."""
    head_norm_eps: float = 1e-5
    """The eps of the head's LayerNorm; models of transformers use the backbone's here, too."""
    depth: int = 0
    """Number of transformer blocks, the backbone's first ones; 0: all of them."""
    patchout_time: int = 0
    """Columns of patches (times) that each training step leaves out, proportionally fewer if the
    input is shorter than num_frames; 0: none."""
    patchout_frequency: int = 0
    """Rows of patches (frequency bands) that each training step leaves out; 0: none."""
    patchout_share: float = 0.0
    """Share of the remaining patches that each training step leaves out, anywhere in the grid."""
    checkpoint_activations: bool = False
    """Recompute each block in the backward pass instead of keeping its activations: less memory,
    about a third more time."""
    compile: bool = False
    """Compile the blocks by torch.compile; needs a C++ compiler on CPUs, and time at the start."""

    def __post_init__(self) -> None:
        for name in ("patch_frequency", "patch_time", "num_frames"):
            _check(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        sizes = ("patch_frequency", "patch_time", "stride_frequency", "stride_time", "num_frames")
        check_at_most(self, MAX_COUNT, *sizes, "depth", "patchout_time", "patchout_frequency")
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
        """The same model with random weights, such as to load a checkpoint into."""
        return replace(self, pretrained=False, weights_file="")

    def grid(self, num_mels: int, num_frames: int | None = None) -> tuple[int, int]:
        """Patches in frequency and in time, (f, t), of an input.

        Args:
            num_mels: of the input.
            num_frames: likewise; None: the setting, the maximum.

        Raises:
            UserError: the patch is higher than the input, or patchout leaves no row of patches.
        """
        if num_mels < self.patch_frequency:
            raise UserError(
                "model.patch_frequency",
                f"must be at most the number of mel bins ({num_mels}), got {self.patch_frequency}",
            )
        rows = patches_along(num_mels, self.patch_frequency, self.stride_frequency)
        if self.patchout_frequency >= rows:
            raise UserError(
                "model.patchout_frequency",
                f"must be below the {rows} rows of patches, got {self.patchout_frequency}",
            )
        return rows, self._columns(num_frames)

    def num_patches(self, num_mels: int, num_frames: int | None = None) -> int:
        """N: patches of one input, without the class tokens. Raises as `grid`."""
        rows, columns = self.grid(num_mels, num_frames)
        return rows * columns

    def num_kept_patches(self, num_mels: int, num_frames: int | None = None) -> int:
        """Patches of one input that a training step sees. Raises as `grid`."""
        rows, columns = self.grid(num_mels, num_frames)
        remaining = (rows - self.patchout_frequency) * (columns - self.num_columns_out(columns))
        return remaining - int(self.patchout_share * remaining)

    def num_columns_out(self, columns: int) -> int:
        """How many of `columns` columns of patches a training step leaves out.

        `patchout_time` for an input of num_frames, the same share of fewer columns, rounded down.
        """
        return self.patchout_time * columns // self._columns()

    def leaves_patches_out(self) -> bool:
        """Whether training steps see only some of the patches."""
        return bool(self.patchout_time or self.patchout_frequency or self.patchout_share)

    def _columns(self, num_frames: int | None = None) -> int:
        return patches_along(num_frames or self.num_frames, self.patch_time, self.stride_time)


def _check(valid: bool, name: str, expected: str, value: object) -> None:
    if not valid:
        raise SettingValueError(name, f"must be {expected}, got {value}")
