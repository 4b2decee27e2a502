"""Which clips are trained on and which are evaluated, as arrays the loader and sampler work on.

In: a prepared data set and the recipe's data settings. Out: two `ClipSet`s, and the mean and
standard deviation that inputs are normalised with.

N clips, C classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.card import statistics
from pipeline.dataset.prepared import PreparedDataset
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from trainer.data.settings import DataSettings, clips_name

NUM_BYTES = np.dtype(np.float16).itemsize
"""Bytes of a number in a stored fbank."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredAudio:
    """What a clip set adds for clips that are stored as audio."""

    fbank: FbankSettings
    """How fbanks are computed from it, on the training device."""
    num_samples: NDArray[np.int64]
    """`[N]`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClipSet:
    """N clips of a prepared data set, in the order of its index."""

    name: str
    """Name of the predictions on these clips."""
    ids: list[str]
    shards: list[str]
    """Path of each clip's tar, `[N]`."""
    offset_bytes: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64] | None = None
    """Checksums of the clips' bytes, `[N]`; None in an old data set, which has none."""
    label_indices: list[list[int]]
    """Class indices of each clip's labels, `[N]` lists."""
    common: NDArray[np.bool_]
    """Which clips are also in the subset that others scored, `[N]`."""
    labels: list[str]
    """The vocabulary, `[C]`."""
    num_mels: int
    data_fingerprint: str = ""
    """Of the data set."""
    audio: StoredAudio | None = None
    """None where fbanks are stored."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_frames(self) -> NDArray[np.int64]:
        """Frames of each clip, `[N]`."""
        if self.audio is None:
            return self.size_bytes // (NUM_BYTES * self.num_mels)
        return self.audio.fbank.num_frames(self.audio.num_samples)

    def targets(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """0/1 targets `[B, C]` of the clips at B indices."""
        targets = np.zeros((len(indices), len(self.labels)), dtype=np.float32)
        for item, index in enumerate(indices):
            targets[item, self.label_indices[index]] = 1.0
        return targets


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingData:
    """The clips to train and evaluate on, and how to normalise them."""

    train: ClipSet
    evaluation: ClipSet
    mean: float
    std: float


def make_clip_set(dataset: PreparedDataset, clips: pa.Table, name: str) -> ClipSet:
    """The clip set of some rows of a data set's index."""
    class_of = {label: index for index, label in enumerate(dataset.labels)}
    fbank, audio = dataset.audio_fbank, None
    if fbank:
        num_samples = [fbank.samples_in(seconds) for seconds in clips["duration_s"].to_pylist()]
        audio = StoredAudio(fbank=fbank, num_samples=np.array(num_samples, dtype=np.int64))
    return ClipSet(
        name=name,
        ids=clips["id"].to_pylist(),
        shards=[storage.join(dataset.path, shard) for shard in clips["shard"].to_pylist()],
        offset_bytes=clips["offset_bytes"].to_numpy(),
        size_bytes=clips["size_bytes"].to_numpy(),
        xxh3=clips["xxh3"].to_numpy() if "xxh3" in clips.column_names else None,
        common=clips["common"].to_numpy(),
        label_indices=[
            [class_of[label] for label in labels] for labels in clips["labels"].to_pylist()
        ],
        labels=dataset.labels,
        num_mels=dataset.num_mels,
        data_fingerprint=dataset.card.fingerprint,
        audio=audio,
    )


def select_clips(dataset: PreparedDataset, split: str, fold: int = 0) -> ClipSet:
    """A split, or one fold of it, under the name its predictions get."""
    return make_clip_set(dataset, dataset.select(split, fold=fold), clips_name(split, fold))


def select_training_data(dataset: PreparedDataset, settings: DataSettings) -> TrainingData:
    """The two clip sets of a run.

    Raises:
        UserError: a split or fold is not in the data set, or nothing is left to train on.
    """
    try:
        training = dataset.select(settings.train_split, except_folds=settings.untrained_folds)
        evaluation = select_clips(dataset, *settings.evaluation)
    except UserError as error:
        choice = (
            "data.train_split, data.eval_split, data.fold (0: none) and data.unused_folds choose "
            "the clips"
        )
        remedy = f"{error.remedy}; {choice}" if error.remedy else choice
        raise UserError(error.where, error.what, remedy) from error
    if training.num_rows == 0:
        folds = " and ".join(map(str, settings.untrained_folds))
        raise UserError(dataset.path, f"no clip outside fold {folds} to train on")
    mean, std = settings.mean, settings.std
    if math.isnan(mean):
        mean, std = statistics(training, dataset.num_mels)
    return TrainingData(
        train=make_clip_set(dataset, training, settings.train_split),
        evaluation=evaluation,
        mean=mean,
        std=std,
    )
