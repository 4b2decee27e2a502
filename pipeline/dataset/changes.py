"""What a run of `prepare` changes in a data set that is there already, in numbers and in words.

In: the manifest, and the index and ledger of the data set, or its plan where a killed run left
neither. Out: how many clips differ, and how.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.audio import rejects
from pipeline.dataset.card import Card
from pipeline.dataset.prepared import index_path, ledger_path
from pipeline.manifest.manifest import Manifest
from pipeline.shards.match import differing
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.plan import Plan
from pipeline.shards.usage import Usage

_COMPARED = pa.schema(
    [INDEX_SCHEMA.field(name) for name in ("id", "uri", "labels", "split", "fold", "common")]
)


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
    return f"{count:,} clip" + ("" if count == 1 else "s")


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
    known = _written(output) if card else None
    if known is None:
        known = _planned(plan)
    now = manifest.clips
    rows = pc.index_in(known["id"], now["id"])
    is_kept = pc.is_valid(rows)
    before, rows = known.filter(is_kept), pc.drop_null(rows)
    after = now.take(rows)

    def is_changed(name: str) -> npt.NDArray[np.bool_]:
        is_known = pc.is_valid(before[name]).to_numpy()
        is_other: npt.NDArray[np.bool_] = is_known & differing(before[name], after[name])
        return is_other

    is_planned = np.zeros(now.num_rows, dtype=bool)
    is_planned[usage.rows[usage.rows >= 0]] = True
    has_other_audio = is_changed("uri") | ~is_planned[rows.to_numpy()]
    return Changes(
        num_labels=int(is_changed("labels").sum()),
        num_splits=int(is_changed("split").sum()),
        num_folds=int(is_changed("fold").sum()),
        num_common=int(is_changed("common").sum()),
        classes=_classes(card.labels if card else plan.basis.labels, list(manifest.labels)),
        num_removed=known.num_rows - before.num_rows,
        num_added=now.num_rows - before.num_rows,
        num_other_audio=int(has_other_audio.sum()),
    )


def _written(output: str) -> pa.Table | None:
    """The clips of index and ledger, in which labels, split and fold are unknown; None: damaged."""
    try:
        index = storage.read_table(index_path(output), _COMPARED)
        ledger = storage.read_table(ledger_path(output), rejects.SCHEMA)
    except (FileNotFoundError, storage.NoFileError, storage.DocumentError):
        return None
    rejected = pa.table({name: ledger[name] for name in ("id", "uri")})
    return pa.concat_tables([index, rejected], promote_options="default")


def _planned(plan: Plan) -> pa.Table:
    """The clips of a plan; one that was planned again counts as the last time."""
    numbers = pa.array(range(plan.clips.num_rows))
    last = pa.table({"id": plan.clips["id"], "row": numbers}).group_by("id")
    rows = last.aggregate([("row", "max")])["row_max"]
    return plan.clips.select(_COMPARED.names).take(rows)


def _classes(before: list[str], now: list[str]) -> str:
    if before == now:
        return ""
    if len(before) != len(now):
        return f"{len(before):,} classes became {len(now):,}"
    return "order of the classes changed" if {*before} == {*now} else "classes renamed"
