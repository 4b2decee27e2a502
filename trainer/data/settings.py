"""Settings of clips, sampling, augmentation and loading."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.errors import MAX_COUNT, SettingValueError, check_at_most, check_one_of
from pipeline.storage.paths import is_remote


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """Which clips to train and evaluate on, and how inputs are normalised."""

    train_split: str = "train"
    """Split to train on."""
    eval_split: str = "eval"
    """Split to evaluate on after each epoch; ignored when a fold is held out."""
    fold: int = 0
    """For cross-validation: hold this fold of `train_split` out and evaluate on it; 0: none."""
    unused_folds: tuple[int, ...] = ()
    """Folds of `train_split` to neither train nor evaluate on, such as the one to report while
    `search` chooses settings by another."""
    mean: float = math.nan
    """Mean of the raw log-mel; NaN or left out: computed from the training clips."""
    std: float = math.nan
    """Standard deviation of the raw log-mel; NaN or left out: computed from the training clips."""

    def __post_init__(self) -> None:
        if self.fold < 0:
            raise SettingValueError("fold", f"must be at least 0, got {self.fold}")
        check_at_most(self, MAX_COUNT, "fold", "unused_folds")
        if min(self.unused_folds, default=1) < 1 or self.fold in self.unused_folds:
            raise SettingValueError(
                "unused_folds",
                f"must be folds from 1, other than data.fold, got {list(self.unused_folds)}",
            )
        if math.isnan(self.mean) != math.isnan(self.std):
            raise SettingValueError("mean", "must be given together with std, or neither")
        if math.isinf(self.mean):
            raise SettingValueError("mean", f"must be a finite number, got {self.mean}")
        if self.std <= 0 or math.isinf(self.std):
            raise SettingValueError("std", f"must be a finite number above 0, got {self.std}")

    @property
    def evaluation(self) -> tuple[str, int]:
        """Split and fold to evaluate on after each epoch; fold 0: the whole split."""
        return (self.train_split, self.fold) if self.fold else (self.eval_split, 0)

    @property
    def untrained_folds(self) -> tuple[int, ...]:
        """Folds of `train_split` that are not trained on."""
        return (self.fold, *self.unused_folds) if self.fold else self.unused_folds

    @property
    def eval_name(self) -> str:
        """Name of the predictions on the evaluation clips."""
        return clips_name(*self.evaluation)


def clips_name(split: str, fold: int) -> str:
    """Name of a split, or of one fold of it."""
    return f"{split}-fold{fold}" if fold else split


MAX_SEED = 2**64 - 1


SamplingMode = Literal["shuffle", "balanced"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerSettings:
    """How the clips of an epoch are drawn."""

    mode: SamplingMode = "shuffle"
    """"shuffle": every clip once; "balanced": by class weight, with replacement."""
    bucket_frames: tuple[int, ...] = ()
    """Input lengths below model.num_frames, such as [256, 512]. A clip is padded to the shortest
    that holds it, and clips of one length are batched together, in evaluation too. Sampling and
    augmentation stay the same, but a short clip's scores change, and differ from those of programs
    that pad all clips alike. Empty: all are padded to model.num_frames."""
    bucket_batches: int = 32
    """Batches within which clips are reordered to meet others of their length."""

    def __post_init__(self) -> None:
        edges = self.bucket_frames
        if any(edge < 1 for edge in edges) or any(a >= b for a, b in itertools.pairwise(edges)):
            raise SettingValueError(
                "bucket_frames", f"must be increasing and at least 1, got {list(edges)}"
            )
        check_at_most(self, MAX_COUNT, "bucket_frames", "bucket_batches")
        if self.bucket_batches < 1:
            raise SettingValueError(
                "bucket_batches", f"must be at least 1, got {self.bucket_batches}"
            )
        check_one_of(self, get_args(SamplingMode), "mode")


CropMode = Literal["first", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSettings:
    """How training clips are augmented; the defaults are for AudioSet."""

    frequency_mask: int = 48
    """Frequency masks are narrower than this many mel bins; 0 for none."""
    time_mask: int = 192
    """Time masks are shorter than this many frames; 0 for none."""
    mixup_share: float = 0.5
    """Share of the clips that are mixed with another clip; 0 for none."""
    mixup_alpha: float = 10.0
    """The mixing weight is drawn from Beta(alpha, alpha)."""
    noise: bool = False
    """Whether to add noise U[0,1) * U[0,1) / 10 to the normalised input."""
    roll_frames: int = 0
    """The input is rolled in time by -roll_frames to roll_frames - 1 frames; 0 for none."""
    crop: CropMode = "first"
    """Part of a longer clip or mixup partner to use: its "first" frames, or a "random" stretch."""

    def __post_init__(self) -> None:
        check_one_of(self, get_args(CropMode), "crop")
        for name in ("frequency_mask", "time_mask", "roll_frames"):
            if getattr(self, name) < 0:
                raise SettingValueError(name, f"must be at least 0, got {getattr(self, name)}")
        check_at_most(self, MAX_COUNT, "frequency_mask", "time_mask", "roll_frames", "mixup_alpha")
        if not 0 <= self.mixup_share <= 1:
            raise SettingValueError("mixup_share", f"must be from 0 to 1, got {self.mixup_share}")
        if not (self.mixup_alpha > 0 and math.isfinite(self.mixup_alpha)):
            raise SettingValueError(
                "mixup_alpha", f"must be a number above 0, got {self.mixup_alpha}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSettings:
    """How batches are read; no setting changes their contents."""

    threads: int = 4
    """Threads in each worker that read batches."""
    batches_ahead: int = 8
    """Batches to read, and to draw noise for, before they are needed."""
    reads_in_flight: int = 32
    """Clips that each worker reads from S3 at a time, from at most `batches_ahead` batches."""
    cache_mb: int = 1024
    """Memory in each worker that keeps training clips once read, in MB, and as much again for
    evaluation clips; a small data set is read only once."""
    cache_gb: float = 0.0
    """Disk space on each machine for whole shards from S3, in GB; 0 for none."""
    cache_folder: str = ""
    """Local folder on each machine for these shards, in a subfolder `ast-ray-shards`; runs may
    share it."""

    def __post_init__(self) -> None:
        for name in ("threads", "batches_ahead", "reads_in_flight"):
            if getattr(self, name) < 1:
                raise SettingValueError(name, f"must be at least 1, got {getattr(self, name)}")
        check_at_most(self, 1000, "threads")
        check_at_most(self, MAX_COUNT, "batches_ahead", "reads_in_flight", "cache_gb")
        check_at_most(self, 1000 * MAX_COUNT, "cache_mb")
        if self.cache_mb < 0:
            raise SettingValueError("cache_mb", f"must be at least 0, got {self.cache_mb}")
        if not 0 <= self.cache_gb < math.inf:
            raise SettingValueError(
                "cache_gb", f"must be a number of at least 0, got {self.cache_gb}"
            )
        if (self.cache_gb > 0) != bool(self.cache_folder) or is_remote(self.cache_folder):
            raise SettingValueError(
                "cache_folder",
                "must be a local folder if cache_gb is above 0, and else empty, "
                f"got {self.cache_folder!r}",
            )
