"""A prepared data set, opened for reading: the card, the index, and any clip's fbank.

In: a folder. Steps: check the card against its own checksum, and the index against the card's: so
they are as `prepare` wrote them. Out: the data set, whose clips have checksums in the index. Of the
index only the rows and columns that are asked for are read: it may have millions of clips.
"""

import hashlib
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.audio import rejects
from pipeline.audio.stored_audio import Samples16, decode_flac, to_waveform
from pipeline.dataset.card import Card, checksum_fault, decode_card
from pipeline.errors import UserError
from pipeline.fbank_settings import FbankSettings
from pipeline.shards.parts import index_schema
from pipeline.shards.plan import FORMAT_VERSION
from pipeline.shards.tar import Fbank, checksum, fbank_from_bytes

_logger = logging.getLogger(__name__)

INDEX_ROWS_PER_GROUP = 16_384
"""Few enough that the rows of one shard are a small read, many enough for a small footer."""

REPAIR = "the data set was damaged after `prepare`: run `verify`, then `prepare` again"
"""The remedy for a file that no longer matches its checksum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedDataset:
    """What `prepare` wrote."""

    path: str
    card: Card
    index: storage.TableFile
    """One row per clip, with the columns of `index_schema`."""

    @property
    def labels(self) -> list[str]:
        """The vocabulary, in the order of the classes."""
        return self.card.labels

    @property
    def num_mels(self) -> int:
        """Mel bins of the fbanks, F."""
        return self.card.fbank.num_mels

    @property
    def audio_fbank(self) -> FbankSettings | None:
        """How to compute fbanks from the stored audio; None if fbanks are stored."""
        return self.card.fbank if self.card.store == "audio" else None

    def rows(
        self, split: str, *, fold: int = 0, except_folds: Collection[int] = ()
    ) -> npt.NDArray[np.bool_]:
        """Which rows of the index are of a split, of one of its folds, or of all folds but some.

        Raises:
            UserError: the data set has no such split or fold.
        """
        in_split = np.zeros(self.index.num_rows, dtype=bool)
        folds = np.zeros(self.index.num_rows, dtype=np.int32)
        start = 0
        for piece in self.index.pieces(["split", "fold"]):
            where = slice(start, start + piece.num_rows)
            in_split[where] = pc.equal(piece["split"], split).to_numpy()
            folds[where] = piece["fold"].to_numpy()
            start = where.stop
        if not in_split.any():
            known = ", ".join(self.card.splits)
            raise UserError(self.path, f"no split {split!r}", f"choose from: {known}")
        present = np.unique(folds[in_split]).tolist()
        for wanted in [fold] if fold else except_folds:
            if wanted not in present:
                known = f"only {present}" if present != [0] else "it has none"
                raise UserError(self.path, f"split {split!r} has no fold {wanted}, {known}")
        if fold:
            in_split &= folds == fold
        for unwanted in except_folds:
            in_split &= folds != unwanted
        return in_split

    def folds(self, split: str) -> list[int]:
        """The folds of a split in order; 0: clips without one.

        Raises:
            UserError: the data set has no such split.
        """
        pieces = self.index.pieces(["fold"], self.rows(split))
        return sorted(set().union(*(np.unique(piece["fold"]).tolist() for piece in pieces)))

    def select(
        self,
        split: str,
        *,
        fold: int = 0,
        except_folds: Collection[int] = (),
        names: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of the index: a split, one of its folds, or all its folds but some.

        `names`: the columns; None: all of them.

        Raises:
            UserError: the data set has no such split or fold.
        """
        chosen = self.rows(split, fold=fold, except_folds=except_folds)
        names = self.index.column_names if names is None else names
        empty = pa.schema([self.index.schema.field(name) for name in names]).empty_table()
        return pa.concat_tables([empty, *self.index.pieces(names, chosen)])

    def read_fbank(self, row: int) -> Fbank:
        """The fbank `[T, F]` float16 of a clip, given by its row of the index, in one ranged read.

        Raises:
            OSError, EOFError, UserError: the shard is missing, truncated or damaged.
        """
        settings = self.audio_fbank
        if settings is None:
            return fbank_from_bytes(self._read_clip(row), self.num_mels)
        import torch  # slow to import, and not needed to open a data set

        from pipeline.fbank import fbank

        samples = self.read_samples(row)
        numbers: Fbank = fbank(torch.from_numpy(to_waveform(samples)), settings).half().numpy()
        return numbers

    def read_samples(self, row: int) -> Samples16:
        """The stored audio `[S]` int16 of a clip, given by its row of the index.

        Raises:
            OSError, EOFError, UserError: the shard is missing, truncated or damaged.
        """
        duration_s = self.index.row(row)["duration_s"]
        return decode_flac(self._read_clip(row), self.card.fbank.samples_in(duration_s))

    def _read_clip(self, row: int) -> bytes:
        clip = self.index.row(row)
        path = storage.join(self.path, clip["shard"])
        data = storage.read_range(path, clip["offset_bytes"], clip["size_bytes"])
        if "xxh3" in clip and clip["xxh3"] != checksum(data):
            what = f"clip {clip['id']!r} does not match its checksum in the index"
            raise UserError(path, what, REPAIR)
        return data


def card_path(path: str) -> str:
    """Path of a data set's card."""
    return storage.join(path, "card.json")


def index_path(path: str) -> str:
    """Path of a data set's index."""
    return storage.join(path, "index.parquet")


def ledger_path(path: str) -> str:
    """Path of a data set's ledger of rejected clips."""
    return storage.join(path, "rejects.parquet")


def page_path(path: str) -> str:
    """Path of a data set's page."""
    return storage.join(path, "dataset.html")


def remove_card(path: str) -> None:
    """Remove a data set's card, and its page, which would describe another one."""
    storage.remove(card_path(path))
    with suppress(UserError):  # a page that cannot be removed is no reason to stop
        storage.remove(page_path(path))


def read_index_rows(path: str, start: int, end: int) -> pa.Table:
    """Rows `start` to `end` of the index; only their row groups are read."""
    with storage.open_binary(index_path(path)) as file:
        index = pq.ParquetFile(file)
        first = start // INDEX_ROWS_PER_GROUP
        groups = range(first, -(-end // INDEX_ROWS_PER_GROUP))
        rows = index.read_row_groups(list(groups))
    return rows.slice(start - first * INDEX_ROWS_PER_GROUP, end - start)


def read_card_bytes(path: str) -> bytes:
    """The content of a data set's `card.json`.

    Raises:
        UserError: there is no card, so no complete data set.
        NoFileError: something else is in its place.
    """
    try:
        return storage.read_bytes(card_path(path))
    except FileNotFoundError as error:
        what, remedy = "not a complete data set (no card.json)", "finish `prepare` first"
        if path.endswith(".toml"):
            what = "a recipe, not a prepared data set"
            remedy = "name the recipe first, and the data set's folder by --data"
        elif path.endswith(".parquet"):
            what = "a table, not the folder of a prepared data set"
            remedy = "if it is a manifest, `prepare` it, and name the folder that it writes"
        elif kind := storage.held_kind(path):
            what, remedy = f"holds {kind}, not a data set", "name the folder that `prepare` wrote"
        raise UserError(path, what, remedy) from error


def open_dataset(path: str) -> PreparedDataset:
    """Open a prepared data set.

    Raises:
        UserError: there is no card, so no complete data set; the card has another format version;
            the card or the index is damaged, or the index is missing.
    """
    path = storage.absolute(path)
    storage.check_bucket(path)
    try:
        data = read_card_bytes(path)
    except storage.NoFileError as error:
        raise UserError(card_path(path), error.what, REPAIR) from error
    card = decode_card(data, card_path(path))
    if fault := checksum_fault(data):
        raise UserError(card_path(path), f"the card {fault}", REPAIR)
    return PreparedDataset(path=path, card=card, index=open_index(path, card))


def open_index(path: str, card: Card) -> storage.TableFile:
    """Open the index of a data set with this card.

    Raises:
        UserError: the index is missing or damaged, or of another card.
    """
    where = index_path(path)
    try:
        source, sha256 = storage.open_whole(where)
    except FileNotFoundError as error:
        raise UserError(where, "is missing", REPAIR) from error
    except storage.NoFileError as error:
        raise UserError(where, error.what, REPAIR) from error
    _check_sha256(where, sha256, card.index_sha256)
    schema = index_schema(card.store, card.format_version)
    return storage.TableFile(source, schema, where=where, remedy=REPAIR)


def read_ledger(dataset: PreparedDataset) -> pa.Table:
    """The rejected clips, with the columns of `pipeline.audio.rejects`.

    Raises:
        UserError: the ledger is missing or damaged.
    """
    path = ledger_path(dataset.path)
    try:
        data = storage.read_bytes(path)
        _check_sha256(path, hashlib.sha256(data).hexdigest(), dataset.card.rejects_sha256)
        return storage.parse_table(data, rejects.SCHEMA)
    except FileNotFoundError as error:
        raise UserError(path, "is missing", REPAIR) from error
    except storage.NoFileError as error:
        raise UserError(path, error.what, REPAIR) from error
    except storage.DocumentError as error:
        raise UserError(path, str(error), REPAIR) from error


def _check_sha256(path: str, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(path, "does not match the card's checksum", REPAIR)


def note_unchecked(dataset: PreparedDataset) -> None:
    """Say of an old data set that damage to its clips goes unnoticed."""
    if dataset.card.format_version < FORMAT_VERSION:
        _logger.info(
            "%s: a data set of format version %d has no checksums of its clips, so what is read of "
            "it is not checked; `verify` can",
            dataset.path,
            dataset.card.format_version,
        )
