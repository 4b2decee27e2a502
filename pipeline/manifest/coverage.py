"""How much of what a source lists was found: counts by split and by class, as plain JSON.

All functions are pure; `N` is the number of listed segments. A listed segment is found, unreadable
(its only file is empty) or missing. Out: the dictionary that travels in the manifest and that the
coverage page draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Mask = npt.NDArray[np.bool_]


def make_coverage(
    source: str,
    *,
    split: pa.Array,
    duration_s: npt.NDArray[np.float64],
    classes: pa.ListArray,
    labels: Sequence[str],
    found: Mask,
    unreadable: Mask,
) -> dict[str, Any]:
    """Count a listing.

    Args:
        source: where the audio was looked for.
        split: `[N]` names of splits.
        duration_s: `[N]` lengths of the segments, in seconds.
        classes: `[N]` lists of places in `labels`.
        labels: the vocabulary.
        found: `[N]` whether there is a file for it.
        unreadable: `[N]` whether there is only an empty one.
    """
    names = sorted(pc.unique(split).to_pylist())
    masks = {name: pc.equal(split, name).to_numpy(zero_copy_only=False) for name in names}
    return {
        "source": source,
        "splits": {
            name: _count(found[mask], unreadable[mask], duration_s[mask])
            for name, mask in masks.items()
        },
        "total": _count(found, unreadable, duration_s),
        "classes": count_classes(classes, labels, found),
        "common": None,
    }


def count_classes(
    classes: pa.ListArray, labels: Sequence[str], found: Mask
) -> list[dict[str, Any]]:
    """Segments of each class that are listed and found, the smallest share first.

    A class without segments misses none: its share is 1.
    """
    places = classes.flatten().to_numpy()
    official = np.bincount(places, minlength=len(labels))
    kept = np.bincount(
        places[np.repeat(found, classes.value_lengths().to_numpy())], minlength=len(labels)
    )
    share = np.where(official > 0, kept / np.maximum(official, 1), 1.0)
    return [
        {
            "label": labels[i],
            "official": int(official[i]),
            "found": int(kept[i]),
            "share": float(share[i]),
        }
        for i in np.argsort(share, kind="stable")
    ]


def _count(
    found: Mask, unreadable: Mask, duration_s: npt.NDArray[np.float64]
) -> dict[str, int | float]:
    return {
        "listed": len(found),
        "found": int(found.sum()),
        "missing": int((~found & ~unreadable).sum()),
        "unreadable": int(unreadable.sum()),
        "found_s": round(float(duration_s[found].sum()), 3),
    }
