"""What a run of `prepare` changes in a data set that is there already, in numbers and in words.

In: the manifest, and the index and ledger of the data set, or its plan where a killed run left
neither. Out: how many clips differ, and how.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import storage
from pipeline.audio import rejects
from pipeline.dataset.card import Card
from pipeline.dataset.prepared import index_path, ledger_path
from pipeline.manifest.manifest import Manifest
from pipeline.shards.match import Rows, find_ids, hashes_of, id_hashes
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.plan import Plan
from pipeline.shards.usage import Usage
from pipeline.storage.stored_table import StoredTable
from pipeline.terminal.units import counted

_LABELLING = ("labels", "split", "fold", "common")
_COMPARED = pa.schema([INDEX_SCHEMA.field(name) for name in ("id", "uri", *_LABELLING)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """How many clips of a data set change, and how."""

    num_labels: int = 0
    num_splits: int = 0
    num_folds: int = 0
    num_common: int = 0
    """Clips that are new in the common subset, or no longer in it."""
    classes: str = ""
    """What changes in the vocabulary; empty: nothing."""
    num_removed: int = 0
    num_added: int = 0
    num_other_audio: int = 0
    """Clips with another file, or another stretch of it."""
    num_again: int = 0
    """Clips that were rejected for a limit that is higher now."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        counts = {
            "labels of {} changed": self.num_labels,
            "split of {} changed": self.num_splits,
            "fold of {} changed": self.num_folds,
            "common subset changed by {}": self.num_common,
            "{} removed": self.num_removed,
            "{} added": self.num_added,
            "other audio for {}": self.num_other_audio,
            "higher limit for {} rejected before": self.num_again,
        }
        phrases = [text.format(in_words(count)) for text, count in counts.items() if count]
        return ", ".join([*phrases, *([self.classes] if self.classes else [])])


def in_words(count: int) -> str:
    """A number of clips, in words."""
    return counted(count, "clip")


def find_changes(
    manifest: Manifest, output: str, card: Card | None, plan: Plan, usage: Usage
) -> Changes:
    """Compare a manifest with a data set.

    Args:
        manifest: what the data set is to be prepared from.
        output: the data set's folder.
        card: its card; None if it is not complete.
        plan: its plan, which stands for a missing or damaged index.
        usage: which clips of the plan the manifest uses.
    """
    now = manifest.clips
    classes = _classes(card.labels if card else plan.basis.labels, list(manifest.labels))
    known = _written(output) if card else None
    if known is None and not usage.is_changed:
        is_common, was_common = hashes_of(now, ["common"]), hashes_of(plan.clips, ["common"])
        return Changes(
            num_common=int((is_common[usage.rows] != was_common).sum()),
            classes=classes,
            num_added=now.num_rows - len(usage.rows),
        )
    known = known or _planned(plan)
    rows = find_ids(id_hashes(known.clips)[known.rows], id_hashes(now))
    is_kept = rows >= 0
    before, rows = known.rows[is_kept], rows[is_kept]

    def is_changed(name: str) -> npt.NDArray[np.bool_]:
        differs = hashes_of(known.clips, [name])[before] != hashes_of(now, [name])[rows]
        is_other: npt.NDArray[np.bool_] = differs & (
            (before < known.num_labelled) | (name == "uri")
        )
        return is_other

    is_planned = np.zeros(now.num_rows, dtype=bool)
    is_planned[usage.rows[usage.rows >= 0]] = True
    has_other_audio = is_changed("uri") | ~is_planned[rows]
    return Changes(
        num_labels=int(is_changed("labels").sum()),
        num_splits=int(is_changed("split").sum()),
        num_folds=int(is_changed("fold").sum()),
        num_common=int(is_changed("common").sum()),
        classes=classes,
        num_removed=len(known.rows) - len(rows),
        num_added=now.num_rows - len(rows),
        num_other_audio=int(has_other_audio.sum()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    """The clips of a data set."""

    clips: StoredTable
    """With the columns of `_COMPARED`, and perhaps others."""
    rows: Rows
    """Those that count."""
    num_labelled: int
    """Of the rows after these many, labels, split and fold are unknown."""


def _written(output: str) -> _Known | None:
    """The clips of index and ledger; None: damaged."""
    clips = StoredTable(_COMPARED)
    try:
        for batch in storage.iter_table(index_path(output), _COMPARED):
            storage.check_columns(batch.schema, _COMPARED)
            for field in _COMPARED:
                storage.check_cells(batch[field.name], field)
            clips.append(batch)
        num_labelled = clips.num_rows
        ledger = storage.read_table(ledger_path(output), rejects.SCHEMA)
    except (FileNotFoundError, storage.NoFileError, storage.DocumentError):
        return None
    unknown = {name: pa.nulls(ledger.num_rows, _COMPARED.field(name).type) for name in _LABELLING}
    clips.append(pa.table({"id": ledger["id"], "uri": ledger["uri"], **unknown}))
    return _Known(clips=clips, rows=np.arange(clips.num_rows), num_labelled=num_labelled)


def _planned(plan: Plan) -> _Known:
    """The clips of a plan; one that was planned again counts as the last time."""
    num_clips = plan.clips.num_rows
    _, last = np.unique(id_hashes(plan.clips)[::-1], return_index=True)
    rows = np.sort(num_clips - 1 - last)
    return _Known(clips=plan.clips, rows=rows, num_labelled=num_clips)


def _classes(before: list[str], now: list[str]) -> str:
    if before == now:
        return ""
    if len(before) != len(now):
        return f"{counted(len(before), 'class', 'classes')} became {len(now):,}"
    return "order of the classes changed" if {*before} == {*now} else "classes renamed"
