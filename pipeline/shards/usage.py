"""Which clips of a plan a manifest still uses: those with the same id and audio.

A plan says what the shards were built from. Labels, splits and folds may be corrected later without
a rebuild; clips that the manifest lost, or names other audio for, stay in the shards unused.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.rejects import Reject
from pipeline.manifest.manifest import Manifest
from pipeline.shards.match import LABELLING, Rows, hashes_of, match, used_last
from pipeline.shards.parts import Part
from pipeline.shards.plan import Plan
from pipeline.storage.stored_table import StoredTable, batches, taken


class Usage:
    """Where each clip of a plan stands in a manifest."""

    def __init__(self, plan: Plan, manifest: Manifest, before: "Usage | None" = None) -> None:
        """Compare a plan with a manifest.

        Args:
            plan: what the shards are built from.
            manifest: the clips.
            before: the usage, by the same manifest, of the plan that this one extends.
        """
        earlier = before.rows if before else np.empty(0, np.int64)
        num_known = len(earlier) + len(plan.new_rows)
        is_known = plan.made_from is manifest.clips and num_known == plan.clips.num_rows
        rows = np.concatenate([earlier, plan.new_rows])
        self.rows: Rows = used_last(rows) if is_known else match(plan.clips, manifest.clips)
        """For each clip of the plan its row of the manifest; -1: it is unused."""
        ends = np.cumsum([spec.num_clips for spec in plan.specs]).tolist()
        self._ranges = {
            spec.name: slice(end - spec.num_clips, end)
            for spec, end in zip(plan.specs, ends, strict=True)
        }
        self._plan = plan
        self._clips = manifest.clips
        self._is_changed = self.rows < 0
        if not is_known:
            used = np.flatnonzero(~self._is_changed)
            planned = hashes_of(plan.clips, LABELLING)[used]
            now = hashes_of(manifest.clips, LABELLING)[self.rows[used]]
            self._is_changed[used] = planned != now
        elif before:
            self._is_changed[: len(earlier)] |= before._is_changed

    @cached_property
    def _ids(self) -> pa.Array:
        return self._plan.clips["id"].combine_chunks()

    @property
    def is_changed(self) -> bool:
        """Whether a clip is unused, or was planned with another label, split or fold."""
        return bool(self._is_changed.any())

    def is_shard_changed(self, shard: str) -> bool:
        """Whether that is true of a clip of a shard."""
        return bool(self._is_changed[self._ranges[shard]].any())

    def rows_of(self, shard: str, ids: pa.ChunkedArray) -> Rows:
        """The rows of the manifest for some clips of a shard; -1: unused."""
        where = self._ranges[shard]
        found = pc.index_in(ids, self._ids[where]).to_numpy()
        rows: Rows = self.rows[where][found]
        return rows

    def rows_in(self, shard: str) -> Rows:
        """The rows of the manifest for the clips of a shard that are used."""
        rows = self.rows[self._ranges[shard]]
        return rows[rows >= 0]

    def num_used(self, shard: str) -> int:
        """How many clips of a shard the manifest uses; of 0 the shard need not be built."""
        return len(self.rows_in(shard))

    def clips_in(self, shard: str) -> pa.Table:
        """The clips of the manifest for those of a shard that are used, in its order."""
        where = self._ranges[shard]
        start, end = self._num_used[[where.start, where.stop]].tolist()
        return self._in_order.slice(start, end - start)

    @cached_property
    def _in_order(self) -> StoredTable:
        """The clips of the manifest that are used, in the order of the plan."""
        return taken(self._clips, self.rows[self.rows >= 0])

    @cached_property
    def _num_used(self) -> Rows:
        """Clips of the plan that are used before each, and of all."""
        return np.concatenate([[0], np.cumsum(self.rows >= 0)])

    def used_clips(
        self, shards: Iterable[str], names: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The clips of the manifest that some shards are for, in its order, in batches."""
        is_wanted = np.zeros(self._clips.num_rows, dtype=bool)
        for shard in shards:
            is_wanted[self.rows_in(shard)] = True
        start = 0
        for batch in batches(self._clips, names):
            wanted = is_wanted[start : start + batch.num_rows]
            start += batch.num_rows
            yield batch if wanted.all() else batch.filter(pa.array(wanted))

    def rejects(self, shard: str, part: Part) -> tuple[Reject, ...]:
        """The rejected clips of a shard that the manifest uses."""
        if not part.rejects:
            return ()
        ids = pa.chunked_array([[reject.id for reject in part.rejects]], pa.string())
        rows = self.rows_of(shard, ids)
        return tuple(reject for reject, row in zip(part.rejects, rows, strict=True) if row >= 0)
