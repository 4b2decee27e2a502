"""A shard's rows of the index, with the labels, splits and folds of the manifest.

In: the rows as the shard was built. Out: those that are used, and for how many of them the tar has
other labels, or another split or fold.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.manifest import Manifest
from pipeline.shards.match import LABELLING, differing
from pipeline.shards.parts import INDEX_SCHEMA
from pipeline.shards.usage import Usage


class Labelling:
    """What a manifest says of the clips of shards."""

    def __init__(self, usage: Usage, manifest: Manifest) -> None:
        self._usage = usage
        self._common = manifest.clips["common"].to_numpy()

    def apply(self, shard: str, built: pa.Table) -> tuple[pa.Table, int]:
        """The rows of a shard that are used, and how many differ from how they were built."""
        rows = self._usage.rows_of(shard, built["id"])
        if not (rows >= 0).all():
            built = built.filter(pa.array(rows >= 0))
            rows = rows[rows >= 0]
        index = _with_column(built, "common", pa.array(self._common[rows]))
        # The others were built with what the manifest says: their fingerprint covers it.
        if not len(rows) or not self._usage.is_shard_changed(shard):
            return index, 0
        now = self._usage.clips_in(shard)
        now = now.take(pc.index_in(index["id"], now["id"].combine_chunks()))
        for name in LABELLING:
            index = _with_column(index, name, now[name])
        is_outdated = [differing(index[name], built[name]) for name in LABELLING]
        return index, int(np.logical_or.reduce(is_outdated).sum())


def _with_column(index: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    return index.set_column(index.column_names.index(name), INDEX_SCHEMA.field(name), values)
