"""Packed columns of clips behave like the lists that they stand for."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.prepared import PreparedDataset, open_dataset
from tests.support.errors import refused
from tests.support.prepared import make_prepared
from trainer.data.clip_columns import ClipIds, ClipLabels, ClipShards
from trainer.data.clips import ClipSet, make_clip_set

TEXTS = st.lists(st.text(max_size=4), max_size=20)
LABELS = st.lists(st.lists(st.integers(0, 5), max_size=4), max_size=30)


@given(TEXTS, st.integers(1, 5))
def test_ids_are_those_of_their_chunks(ids: list[str], size: int) -> None:
    chunks = [pa.array(ids[start : start + size]) for start in range(0, len(ids), size)]
    packed = ClipIds(chunk.cast(pa.string()) for chunk in chunks)
    assert len(packed) == len(ids)
    assert list(packed) == ids
    assert [packed[number] for number in range(len(ids))] == ids
    assert packed[-2:] == ids[-2:]
    with pytest.raises(IndexError):
        packed[len(ids)]


@given(st.sets(st.text(max_size=2)), st.sets(st.text(max_size=2)))
def test_shared_clips_are_counted(first: set[str], second: set[str]) -> None:
    assert ClipIds.of([*first]).num_shared(ClipIds.of([*second])) == len(first & second)


@given(TEXTS)
def test_shards_are_those_of_the_list(paths: list[str]) -> None:
    packed = ClipShards.of(paths)
    assert list(packed) == paths
    assert packed[:2] == paths[:2]
    moved = [f"s3://{path}" for path in packed.paths]
    assert list(packed.moved(moved)) == [f"s3://{path}" for path in paths]


@given(LABELS, st.integers(1, 7))
def test_labels_are_those_of_the_lists(labels: list[list[int]], at_once: int) -> None:
    packed = ClipLabels.of(labels)
    assert len(packed) == len(labels)
    assert [classes.tolist() for classes in packed] == labels
    assert packed.num_distinct().tolist() == [len(set(classes)) for classes in labels]
    found = list[tuple[int, int]]()
    for start in range(0, len(labels), at_once):
        clips, classes = packed.distinct_pairs(start, start + at_once)
        found += zip(clips.tolist(), classes.tolist(), strict=True)
    assert found == [(clip, number) for clip, own in enumerate(labels) for number in sorted({*own})]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return make_prepared(str(tmp_path_factory.mktemp("data")), max_labels=3)


def test_clip_set_has_the_rows_of_the_index(dataset: PreparedDataset) -> None:
    chosen = np.arange(dataset.index.num_rows) % 3 != 1
    clips = make_clip_set(dataset, chosen, "some")
    rows = dataset.index.read().filter(pa.array(chosen)).to_pylist()
    assert isinstance(clips, ClipSet)
    assert list(clips.ids) == [row["id"] for row in rows]
    assert list(clips.shards) == [f"{dataset.path}/{row['shard']}" for row in rows]
    for name in ("offset_bytes", "size_bytes", "xxh3", "common"):
        assert getattr(clips, name).tolist() == [row[name] for row in rows]
    names = [[dataset.labels[number] for number in classes] for classes in clips.label_indices]
    assert names == [row["labels"] for row in rows]


def test_label_that_the_card_lacks_is_refused(dataset: PreparedDataset) -> None:
    dataset = open_dataset(dataset.path)
    dataset.card.labels[0] = "another"
    with refused("index.parquet", "low", "labels", remedy="verify"):
        make_clip_set(dataset, np.ones(dataset.index.num_rows, dtype=bool), "all")
