"""Counts of what was found: each listed segment once, by split and by class."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.coverage import Coverage, CoverageCounts
from pipeline.storage import parse_document

LABELS = ("dog", "rain", "never listed")
FOUND, MISSING, UNREADABLE = range(3)

segments = st.lists(
    st.tuples(
        st.sampled_from(["eval", "balanced"]),
        st.integers(1, 10),
        st.sets(st.integers(0, 1)).map(sorted),
        st.sampled_from([FOUND, MISSING, UNREADABLE]),
    ),
    min_size=1,
)
Segments = list[tuple[str, int, list[int], int]]


def coverage_of(rows: Segments) -> Coverage:
    split, duration_s, classes, states = zip(*rows, strict=True)
    state = np.array(states)
    counts = CoverageCounts(LABELS)
    counts.add(
        split=pa.array(split),
        duration_s=np.array(duration_s, dtype=np.float64),
        classes=pa.array(classes, pa.list_(pa.int32())),
        found=state == FOUND,
        unreadable=state == UNREADABLE,
    )
    return counts.coverage("/audio")


def test_segments_are_counted_by_split_and_class() -> None:
    rows = [
        ("eval", 10, [0, 1], FOUND),
        ("eval", 4, [1], MISSING),
        ("balanced", 10, [1], UNREADABLE),
        ("eval", 3, [0], FOUND),
    ]
    assert coverage_of(rows).to_json() == {
        "source": "/audio",
        "splits": {
            "balanced": {"listed": 1, "found": 0, "missing": 0, "unreadable": 1, "found_s": 0.0},
            "eval": {"listed": 3, "found": 2, "missing": 1, "unreadable": 0, "found_s": 13.0},
        },
        "total": {"listed": 4, "found": 2, "missing": 1, "unreadable": 1, "found_s": 13.0},
        "classes": [
            {"label": "rain", "official": 3, "found": 1, "share": 1 / 3},
            {"label": "dog", "official": 2, "found": 2, "share": 1.0},
            {"label": "never listed", "official": 0, "found": 0, "share": 1.0},
        ],
        "common": None,
    }


@given(rows=segments)
def test_each_segment_counts_once(rows: Segments) -> None:
    coverage = coverage_of(rows)
    splits, total = coverage.splits.values(), coverage.total
    assert total.listed == len(rows)
    for counts in [total, *splits]:
        assert counts.listed == counts.found + counts.missing + counts.unreadable
    for key, count in asdict(total).items():
        assert sum(getattr(counts, key) for counts in splits) == count
    assert parse_document(json.dumps(coverage.to_json()), Coverage) == coverage


@given(rows=segments)
def test_classes_are_counted_with_the_worst_first(rows: Segments) -> None:
    classes = coverage_of(rows).classes
    assert sorted(entry.label for entry in classes) == sorted(LABELS)
    assert [entry.share for entry in classes] == sorted(entry.share for entry in classes)
    for entry in classes:
        class_number = LABELS.index(entry.label)
        assert entry.official == sum(class_number in row[2] for row in rows)
        assert entry.found == sum(class_number in row[2] and row[3] == FOUND for row in rows)
