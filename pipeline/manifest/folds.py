"""Folds for a manifest whose source has none.

In: a manifest. Out: the same clips, each with the number of its fold.
"""

from dataclasses import replace
from hashlib import blake2b

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.manifest.manifest import SCHEMA, Manifest


def assign_folds(manifest: Manifest, num_folds: int) -> Manifest:
    """Number the clips 1 to `num_folds`, evenly within each class and the same in every run.

    A clip's class is its first label. Clips of a class are ordered by a hash of the id, so that
    neighbouring files, often cuts of one recording, are not assigned in turn by name.
    """
    if not 2 <= num_folds <= 100:
        raise UserError("--folds", f"must be from 2 to 100, got {num_folds}")
    clips = manifest.clips.select(["id", "labels"]).to_pylist()
    ordered = sorted(
        range(len(clips)), key=lambda i: (clips[i]["labels"][:1], _hash(clips[i]["id"]))
    )
    folds = [0] * len(clips)
    for index, clip_index in enumerate(ordered):
        folds[clip_index] = index % num_folds + 1
    column = pa.array(folds, pa.int32())
    table = manifest.clips.set_column(SCHEMA.get_field_index("fold"), SCHEMA.field("fold"), column)
    return replace(manifest, clips=table)


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()
