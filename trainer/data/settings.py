"""Settings of the way from a prepared data set to a batch: clips, order, augmentation, loading."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import SettingValueError
from pipeline.storage.paths import is_remote


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Which part of the data set is for what, and how inputs are normalised."""

    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "eval"
    """Split to evaluate on after each epoch; ignored when a fold is held out."""
    fold: int = 0
    """For cross-validation: hold this fold of `train_split` out and evaluate on it; 0: none."""
    mean: float = math.nan
    """Mean of the raw log-mel; NaN (leave it out): that of the clips trained on."""
    std: float = math.nan
    """Standard deviation of the raw log-mel; NaN (leave it out): that of the clips trained on."""

    def __post_init__(self) -> None:
        if self.fold < 0:
            raise SettingValueError("fold", f"must be at least 0, got {self.fold}")
        if math.isnan(self.mean) != math.isnan(self.std):
            raise SettingValueError("mean", "must be given together with std, or neither")
        if math.isinf(self.mean):
            raise SettingValueError("mean", f"must be a finite number, got {self.mean}")
        if self.std <= 0 or math.isinf(self.std):
            raise SettingValueError("std", f"must be a finite number above 0, got {self.std}")

    @property
    def evaluation(self) -> tuple[str, int]:
        """Split and fold that are evaluated on after each epoch; fold 0: all of the split."""
        return (self.train_split, self.fold) if self.fold else (self.eval_split, 0)

    @property
    def eval_name(self) -> str:
        """What predictions on these are called."""
        return clips_name(*self.evaluation)


def clips_name(split: str, fold: int) -> str:
    """What a split, or one fold of it, is called."""
    return f"{split}-fold{fold}" if fold else split


MAX_SEED = 2**64 - 1


SamplingMode = Literal["shuffle", "balanced"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """How the clips of an epoch are drawn."""

    mode: SamplingMode = "shuffle"
    """"shuffle": every clip once; "balanced": by class weight, with replacement."""
    bucket_frames: tuple[int, ...] = ()
    """Shorter inputs than model.num_frames, such as [256, 512]: a clip is padded to the first that
    holds it, and clips of the same one are computed together, in evaluation too. What is drawn does
    not change, nor how; a short clip's scores do, and programs that pad all clips alike give it
    others. Empty: all are padded to model.num_frames."""
    bucket_batches: int = 32
    """Batches that clips change places within to be together with clips of their length."""

    def __post_init__(self) -> None:
        edges = self.bucket_frames
        if any(one < 1 for one in edges) or any(a >= b for a, b in itertools.pairwise(edges)):
            raise SettingValueError(
                "bucket_frames", f"must be rising and at least 1, got {list(edges)}"
            )
        if self.bucket_batches < 1:
            raise SettingValueError(
                "bucket_batches", f"must be at least 1, got {self.bucket_batches}"
            )
        if self.mode not in get_args(SamplingMode):
            raise SettingValueError(
                "mode", f"must be one of {get_args(SamplingMode)}, got {self.mode!r}"
            )


CropMode = Literal["first", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSettings:
    """What is done to training clips; defaults are those of AudioSet."""

    frequency_mask: int = 48
    """Frequency masks are narrower than this many mel bins; 0 for none."""
    time_mask: int = 192
    """Time masks are shorter than this many frames; 0 for none."""
    mixup_share: float = 0.5
    """Share of the clips that are mixed with another one; 0 for none."""
    mixup_alpha: float = 10.0
    """The mixing weight is drawn from Beta(alpha, alpha)."""
    noise: bool = False
    """Whether to add noise U[0,1) * U[0,1) / 10 to the normalised input."""
    roll_frames: int = 0
    """The input is rolled in time by -roll_frames to roll_frames - 1 frames; 0 for none."""
    crop: CropMode = "first"
    """Of longer clips, partners of mixup too: "first": the first frames; "random": any stretch."""

    def __post_init__(self) -> None:
        if self.crop not in get_args(CropMode):
            raise SettingValueError(
                "crop", f"must be one of {get_args(CropMode)}, got {self.crop!r}"
            )
        for name in ("frequency_mask", "time_mask", "roll_frames"):
            if getattr(self, name) < 0:
                raise SettingValueError(name, f"must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.mixup_share <= 1:
            raise SettingValueError("mixup_share", f"must be from 0 to 1, got {self.mixup_share}")
        if not (self.mixup_alpha > 0 and math.isfinite(self.mixup_alpha)):
            raise SettingValueError(
                "mixup_alpha", f"must be a number above 0, got {self.mixup_alpha}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How batches get to the training step; none of it changes what they hold."""

    threads: int = 4
    """Threads that read batches, in each worker."""
    batches_ahead: int = 8
    """Batches read before they are needed, and noise drawn for them."""
    reads_in_flight: int = 32
    """Clips that each worker reads from S3 at a time, of no more than `batches_ahead` batches."""
    cache_mb: int = 1024
    """Memory of each worker for clips once read, in MB, and as much for those of evaluation; a
    small data set is read only once."""
    cache_gb: float = 0.0
    """Disk of each machine for whole shards from S3, in GB; 0 for none."""
    cache_folder: str = ""
    """Local folder of each machine for them, which go into its `ast-ray-shards`; it may be that of
    other runs."""

    def __post_init__(self) -> None:
        for name in ("threads", "batches_ahead", "reads_in_flight"):
            if getattr(self, name) < 1:
                raise SettingValueError(name, f"must be at least 1, got {getattr(self, name)}")
        if self.cache_mb < 0:
            raise SettingValueError("cache_mb", f"must be at least 0, got {self.cache_mb}")
        if not 0 <= self.cache_gb < math.inf:
            raise SettingValueError(
                "cache_gb", f"must be a number of at least 0, got {self.cache_gb}"
            )
        if (self.cache_gb > 0) != bool(self.cache_folder) or is_remote(self.cache_folder):
            raise SettingValueError(
                "cache_folder",
                "must be a local folder where cache_gb is above 0 and empty where it is not, "
                f"got {self.cache_folder!r}",
            )
