"""An index that is written, counted and read piece by piece is that of one piece."""

import hashlib
import io
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.dataset.exact_sum import ExactSum
from pipeline.dataset.index_writer import IndexWriter
from pipeline.dataset.totals import IndexTotals
from pipeline.shards.parts import INDEX_SCHEMA
from tests.support.errors import refused

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)


@given(st.lists(st.lists(NUMBERS, max_size=20), max_size=10))
def test_exact_sum_of_pieces_equals_fsum_of_all(pieces: list[list[float]]) -> None:
    total = ExactSum()
    for piece in pieces:
        total.add(np.array(piece, dtype=np.float64))
    assert total.value() == math.fsum(number for piece in pieces for number in piece)


def test_exact_sum_neither_loses_small_numbers_nor_overflows() -> None:
    total = ExactSum()
    total.add(np.array([2.0**1000, 1.0, 5e-324]))
    total.add(np.array([-(2.0**1000)]))
    assert total.value() == 1.0
    many = ExactSum()
    many.add(np.full(1 << 20, 1 - 2.0**-53))
    assert many.value() == (1 << 20) * (1 - 2.0**-53)
    many.add(np.array([np.inf]))
    assert many.value() == np.inf
    many.add(np.array([np.nan]))
    assert math.isnan(many.value())


def make_index(num_clips: int, seed: int = 0) -> pa.Table:
    """Rows of an index with every kind of cell: empty lists, silence, no level."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "id": f"clip {number}",
            "uri": f"/audio/{number}.wav",
            "split": ("eval", "train", "more")[rng.integers(3)],
            "fold": int(rng.integers(3)),
            "labels": [f"label {label}" for label in rng.permutation(4)[: rng.integers(4)]],
            "shard": f"shards/{number // 7}.tar",
            "offset_bytes": number * 512,
            "size_bytes": 100,
            "xxh3": int(rng.integers(2**64, dtype=np.uint64)),
            "frames": int(rng.integers(1, 1000)),
            "duration_s": float(rng.uniform(0, 10)),
            "level_dbfs": [-20.0, -60.0, -math.inf][rng.integers(3)],
            "file_level_dbfs": [-20.0, -math.inf, None][rng.integers(3)],
            "repaired": [None, "odd"][rng.integers(2)],
            "common": bool(rng.integers(2)),
            "fbank_sum": float(rng.normal(0, 1e5)),
            "fbank_sumsq": float(rng.uniform(0, 1e6)),
        }
        for number in range(num_clips)
    ]
    return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)


def cut(index: pa.Table, ends: list[int]) -> list[pa.Table]:
    """The index in pieces."""
    bounds = [0, *sorted(end % (index.num_rows + 1) for end in ends), index.num_rows]
    return [index.slice(start, end - start) for start, end in pairwise(bounds)]


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.integers(1, 60), st.integers(1, 20), CUTS)
def test_index_in_pieces_has_the_bytes_of_one(
    tmp_path_factory: pytest.TempPathFactory, num_clips: int, rows_per_group: int, ends: list[int]
) -> None:
    index, path = make_index(num_clips), str(tmp_path_factory.getbasetemp() / "index.parquet")
    with IndexWriter(path, INDEX_SCHEMA, rows_per_group=rows_per_group) as writer:
        for piece in cut(index, ends):
            writer.write(piece)
        writer.commit()
    data = storage.read_bytes(path)
    assert data == storage.encode_table(index, rows_per_group)
    assert writer.sha256 == hashlib.sha256(data).hexdigest()


def test_index_without_commit_leaves_no_file(tmp_path: Path) -> None:
    with IndexWriter(f"{tmp_path}/index.parquet", INDEX_SCHEMA) as writer:
        writer.write(make_index(3))
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


@given(st.integers(1, 60), CUTS)
def test_totals_of_pieces_equal_a_plain_count(num_clips: int, ends: list[int]) -> None:
    index, totals = make_index(num_clips), IndexTotals()
    for piece in cut(index, ends):
        if piece.num_rows:
            totals.add(piece)
    rows = index.to_pylist()
    assert totals.num_clips == num_clips
    assert totals.num_repaired == sum(row["repaired"] is not None for row in rows)
    assert totals.num_faded == sum(
        row["file_level_dbfs"] is not None and row["file_level_dbfs"] - row["level_dbfs"] >= 20
        for row in rows
    )
    assert totals.by_split.keys() == {row["split"] for row in rows}
    for name, split in totals.by_split.items():
        own = [row for row in rows if row["split"] == name]
        assert split.num_clips == len(own)
        assert split.duration_s.value() == math.fsum(row["duration_s"] for row in own)
        labels = [label for row in own for label in row["labels"]]
        assert dict(split.labels) == {label: labels.count(label) for label in set(labels)}
        assert split.moments.num_frames == sum(row["frames"] for row in own)
        num_values = split.moments.num_frames * 128
        mean, std = split.moments.mean_and_std(128)
        assert mean == math.fsum(row["fbank_sum"] for row in own) / num_values
        square = math.fsum(row["fbank_sumsq"] for row in own) / num_values
        assert std == math.sqrt(max(0.0, square - mean * mean))


def as_file(index: pa.Table, rows_per_group: int) -> storage.TableFile:
    source = pa.BufferReader(storage.encode_table(index, rows_per_group))
    return storage.TableFile(source, INDEX_SCHEMA, where="index", remedy="verify")


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 50), st.integers(0, 2**60 - 1))
def test_pieces_of_a_file_are_its_rows(
    num_clips: int, rows_per_group: int, rows_at_once: int, choice: int
) -> None:
    index = make_index(num_clips)
    file = as_file(index, rows_per_group)
    assert file.num_rows == num_clips
    assert file.read().equals(index)
    chosen = np.array([bool(choice >> number & 1) for number in range(num_clips)], dtype=bool)
    names = ["id", "labels", "split"]
    for mask in (None, chosen):
        pieces = [*file.pieces(names, mask, rows_at_once=rows_at_once)]
        assert all(0 < piece.num_rows <= max(rows_at_once, rows_per_group) for piece in pieces)
        expected = index.select(names)
        expected = expected if mask is None else expected.filter(pa.array(mask))
        rows = [row for piece in pieces for row in piece.to_pylist()]
        assert rows == expected.to_pylist()
    for number in range(num_clips):
        assert file.row(number) == index.slice(number, 1).to_pylist()[0]


def test_file_that_is_no_such_table_is_refused() -> None:
    index = make_index(50)
    with refused("index", "not a Parquet file", remedy="verify"):
        storage.TableFile(pa.BufferReader(b"PAR1"), INDEX_SCHEMA, where="index", remedy="verify")
    with refused("index", "no column 'id'", remedy="verify"):
        as_file(index.drop_columns(["id"]), 10)
    odd = index.set_column(3, "fold", pc.cast(index["fold"], pa.int64()))
    with refused("index", "'fold' is int64, expected int32", remedy="verify"):
        as_file(odd, 10)
    labels = pa.array([[None]] * 50, pa.list_(pa.string()))
    file = as_file(index.set_column(4, "labels", labels), 10)
    assert file["id"].to_pylist() == index["id"].to_pylist()
    with refused("index", "'labels' has 50 empty cells", remedy="verify"):
        file.select(["labels"])


def test_damage_in_the_middle_of_a_file_is_refused_when_it_is_read() -> None:
    data = bytearray(storage.encode_table(make_index(50), 10))
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    start = metadata.row_group(3).column(0).dictionary_page_offset
    data[start : start + 20] = bytes(20)
    file = storage.TableFile(
        pa.BufferReader(bytes(data)), INDEX_SCHEMA, where="index", remedy="verify"
    )
    with refused("index", "damaged", remedy="verify"):
        file.select(["id"])
