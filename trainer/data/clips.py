"""Which clips are trained on and which are evaluated, as arrays the loader and sampler work on.

In: a prepared data set and the recipe's data settings. Steps: read the columns that training needs,
piece by piece. Out: two `ClipSet`s, and the mean and standard deviation that inputs are normalised
with.

N clips, C classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.prepared import REPAIR, PreparedDataset
from pipeline.dataset.totals import Moments
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from trainer.data.clip_columns import ClipIds, ClipLabels, ClipShards, Codes
from trainer.data.settings import DataSettings, clips_name

NUM_BYTES = np.dtype(np.float16).itemsize
"""Bytes of a number in a stored fbank."""

_NO_CLASSES = np.empty(0, dtype=np.int32)


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
    ids: ClipIds
    shards: ClipShards
    offset_bytes: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    xxh3: NDArray[np.uint64] | None = None
    """Checksums of the clips' bytes, `[N]`; None in an old data set, which has none."""
    label_indices: ClipLabels
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


class _Reader:
    """Takes the pieces of an index that a clip set is made of."""

    def __init__(self, dataset: PreparedDataset, num_clips: int) -> None:
        card = dataset.card
        self._fbank, self._labels = dataset.audio_fbank, pa.array(dataset.labels, pa.string())
        self._tars = pa.array([tar.name for tar in card.shards], pa.string())
        self._num_read = 0
        self.ids: list[pa.Array] = []
        self.shards = np.empty(num_clips, dtype=np.int32)
        self.ends = np.empty(num_clips, dtype=np.int64)
        self.classes: list[Codes] = []
        self.numbers = {
            name: np.empty(num_clips, dtype=dataset.index.schema.field(name).type.to_pandas_dtype())
            for name in ("offset_bytes", "size_bytes", "xxh3", "common")
            if name in dataset.index.column_names
        }
        self.num_samples = np.empty(num_clips if self._fbank else 0, dtype=np.int64)

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return ["id", "shard", "labels", *self.numbers, *(["duration_s"] if self._fbank else [])]

    def add(self, piece: pa.Table) -> None:
        """Copy the columns of a piece."""
        start = self._num_read
        where = slice(start, start + piece.num_rows)
        self._num_read = where.stop
        self.ids.append(piece["id"].combine_chunks())
        self.shards[where] = _codes(piece["shard"], self._tars, "shards")
        labels = piece["labels"].combine_chunks()
        num_before = int(self.ends[start - 1]) if start else 0
        self.ends[where] = num_before + np.cumsum(pc.list_value_length(labels).to_numpy())
        self.classes.append(_codes(labels.flatten(), self._labels, "labels"))
        for name, numbers in self.numbers.items():
            numbers[where] = piece[name].to_numpy()
        if self._fbank:
            samples = piece["duration_s"].to_numpy() * self._fbank.sample_rate_hz
            self.num_samples[where] = np.rint(samples)  # as `samples_in` rounds


def _codes(texts: pa.Array, known: pa.Array, what: str) -> Codes:
    """The number of each text among the known ones."""
    codes = pc.index_in(texts, value_set=known)
    if codes.null_count:
        unknown = texts.filter(pc.is_null(codes))[0].as_py()
        raise UserError("index.parquet", f"has {unknown!r}, not among the card's {what}", REPAIR)
    numbers: Codes = codes.to_numpy()
    return numbers


def make_clip_set(dataset: PreparedDataset, chosen: NDArray[np.bool_], name: str) -> ClipSet:
    """The clip set of some rows of a data set's index.

    Raises:
        UserError: the index has a label or a shard that the card lacks.
    """
    reader = _Reader(dataset, int(chosen.sum()))
    for piece in dataset.index.pieces(reader.names, chosen):
        reader.add(piece)
    fbank, numbers = dataset.audio_fbank, reader.numbers
    paths = [storage.join(dataset.path, tar.name) for tar in dataset.card.shards]
    return ClipSet(
        name=name,
        ids=ClipIds(reader.ids),
        shards=ClipShards(paths, reader.shards),
        offset_bytes=numbers["offset_bytes"],
        size_bytes=numbers["size_bytes"],
        xxh3=numbers.get("xxh3"),
        common=numbers["common"],
        label_indices=ClipLabels(reader.ends, np.concatenate([*reader.classes, _NO_CLASSES])),
        labels=dataset.labels,
        num_mels=dataset.num_mels,
        data_fingerprint=dataset.card.fingerprint,
        audio=StoredAudio(fbank=fbank, num_samples=reader.num_samples) if fbank else None,
    )


def select_clips(dataset: PreparedDataset, split: str, fold: int = 0) -> ClipSet:
    """A split, or one fold of it, under the name its predictions get."""
    return make_clip_set(dataset, dataset.rows(split, fold=fold), clips_name(split, fold))


def select_training_data(dataset: PreparedDataset, settings: DataSettings) -> TrainingData:
    """The two clip sets of a run.

    Raises:
        UserError: a split or fold is not in the data set, or nothing is left to train on.
    """
    try:
        training = dataset.rows(settings.train_split, except_folds=settings.untrained_folds)
        evaluation = select_clips(dataset, *settings.evaluation)
    except UserError as error:
        choice = (
            "data.train_split, data.eval_split, data.fold (0: none) and data.unused_folds choose "
            "the clips"
        )
        remedy = f"{error.remedy}; {choice}" if error.remedy else choice
        raise UserError(error.where, error.what, remedy) from error
    if not training.any():
        folds = " and ".join(map(str, settings.untrained_folds))
        raise UserError(dataset.path, f"no clip outside fold {folds} to train on")
    mean, std = settings.mean, settings.std
    if math.isnan(mean):
        pieces = dataset.index.pieces(Moments.COLUMNS, training)
        mean, std = Moments.of(pieces).mean_and_std(dataset.num_mels)
    return TrainingData(
        train=make_clip_set(dataset, training, settings.train_split),
        evaluation=evaluation,
        mean=mean,
        std=std,
    )
