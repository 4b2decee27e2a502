"""Folds for a manifest whose source has none.

In: a manifest. Out: the same clips, each with the number of its fold.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.manifest.groups import Grouping, known
from pipeline.manifest.manifest import Manifest, with_column
from pipeline.storage.stored_table import batches
from pipeline.terminal.units import counted

MAX_SEED = 2**32 - 1

Folds = npt.NDArray[np.int32]
"""`[N]` number of each clip's fold."""


def assign_folds(manifest: Manifest, num_folds: int, seed: int = 0) -> Manifest:
    """Number the clips 1 to `num_folds`, evenly within each class and the same in every run.

    A clip's class is its first label. The clips of a group stay together, if the manifest has
    groups; then classes are as even as whole groups allow.

    Args:
        manifest: clips, perhaps with groups.
        num_folds: 2 to 100.
        seed: another one gives other folds.

    Raises:
        UserError: the number of folds is out of range, or there are too few groups or clips.
    """
    if not 2 <= num_folds <= 100:
        raise UserError("--folds", f"must be from 2 to 100, got {num_folds}")
    if not 0 <= seed <= MAX_SEED:
        raise UserError("--seed", f"must be from 0 to {MAX_SEED}, got {seed}")
    group, notes = manifest.group, manifest.notes
    if group is None:
        folds = _by_class(manifest, num_folds, seed)
    else:
        folds = _by_group(manifest, group, num_folds, seed)
        notes += _group_notes(group)
    return replace(
        manifest, clips=with_column(manifest.clips, "fold", _parts(manifest, folds)), notes=notes
    )


def _parts(manifest: Manifest, folds: Folds) -> Iterator[pa.Array]:
    """The folds of each batch of clips."""
    start = 0
    for batch in batches(manifest.clips, ["id"]):
        yield pa.array(folds[start : start + batch.num_rows])
        start += batch.num_rows


def _by_class(manifest: Manifest, num_folds: int, seed: int) -> Folds:
    """Clips of a class are ordered by a hash of the id, so that neighbouring files, often cuts of
    one recording, are not assigned in turn by name."""
    number_of = {label: number for number, label in enumerate(sorted(manifest.labels))}
    classes, hashes = [], []
    for batch in batches(manifest.clips, ["id", "labels"]):
        first = [labels[:1] for labels in batch["labels"].to_pylist()]
        classes.append(np.array([number_of[labels[0]] if labels else -1 for labels in first]))
        hashes.append(_hashes(batch["id"].to_pylist(), seed))
    ordered = np.lexsort((np.concatenate(hashes), np.concatenate(classes)))
    folds = np.zeros(len(ordered), np.int32)
    folds[ordered] = np.arange(len(ordered)) % num_folds + 1
    return folds


def _by_group(manifest: Manifest, group: Grouping, num_folds: int, seed: int) -> Folds:
    from sklearn.model_selection import StratifiedGroupKFold  # loading it takes a second

    ids = manifest.clips["id"].to_pylist()
    names = _group_names(group, ids)
    num_groups = len(set(names))
    if num_groups < num_folds:
        raise UserError(
            f"--group {group.name}",
            f"has {counted(num_groups, 'value')}, too few for {num_folds} folds",
            "make fewer folds",
        )
    classes = [labels[0] if labels else "" for labels in manifest.clips["labels"].to_pylist()]
    pairs = set(zip(names, classes, strict=True))
    if len(pairs) == num_groups == len(set(classes)) < len(ids):
        raise UserError(
            f"--group {group.name}",
            "each of its values is one class, so a fold would hold out whole classes",
            "name another column, such as one of speakers or recordings",
        )
    split = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed).split
    folds = np.zeros(len(ids), np.int32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of small classes, as we warn, too
            parts = list(split(names, classes, names))
    except ValueError as error:
        raise UserError("--folds", f"no class has {num_folds} clips", "make fewer folds") from error
    for fold, (_, held_out) in enumerate(parts, start=1):
        folds[held_out] = fold
    return folds


def _group_notes(group: Grouping) -> tuple[str, ...]:
    num_groups = len(pc.unique(group.values.filter(known(group.values))))
    note = f"folds keep the clips of each of {num_groups:,} values of {group.name!r} together"
    num_unknown = len(group.values) - pc.sum(known(group.values)).as_py()
    if not num_unknown:
        return (note,)
    have = counted(num_unknown, "clip has", "clips have")
    return note, f"{have} no {group.name!r}; each counts as a value"


def _group_names(group: Grouping, ids: list[str]) -> list[str]:
    """The group of each clip; a clip without one is a group of its own."""
    is_known = known(group.values).to_pylist()
    values = group.values.to_pylist()
    return [
        f"group {value}" if has_group else f"clip {clip_id}"
        for value, has_group, clip_id in zip(values, is_known, ids, strict=True)
    ]


def _hashes(texts: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """`[N]`: a number for each text, which is another with another seed."""
    salt = seed.to_bytes(16, "big")
    digests = [blake2b(text.encode(), digest_size=8, salt=salt).digest() for text in texts]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
