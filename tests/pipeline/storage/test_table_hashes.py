"""Hashes of tables depend on every cell, and on nothing else."""

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.stored_table import StoredTable
from pipeline.storage.table_hashes import RangeHasher, content_hash, row_hashes

SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("number", pa.int32()),
        ("seconds", pa.float64()),
        ("flag", pa.bool_()),
    ]
)

rows = st.lists(
    st.fixed_dictionaries(
        {
            "text": st.none() | st.sampled_from(["", "a", "ä", "aa"]),
            "labels": st.none() | st.lists(st.sampled_from(["", "a", "b"]), max_size=2),
            "number": st.none() | st.integers(-1, 1),
            "seconds": st.none() | st.sampled_from([0.0, 0.5, 1.0]),
            "flag": st.none() | st.booleans(),
        }
    ),
    max_size=12,
)


def test_hash_is_the_one_in_data_sets_that_were_prepared_before() -> None:
    columns = {
        "a": pa.array([[1, 2], None, [], [3, None]], pa.list_(pa.int32())),
        "b": pa.array([None, "x", "", "yz"]),
        "c": pa.array([1, 2**63, None, 5], pa.uint64()),
        "d": pa.array([True, None, False, True]),
    }
    expected = "2ce3f00f7ec57dcf644cb82152d7720414549b61df982aeca56c5cffc871dd9b"
    assert content_hash(pa.table(columns)) == expected


@given(rows=rows, data=st.data())
def test_hash_is_the_same_in_any_layout(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    cut = data.draw(st.integers(0, table.num_rows))
    stored = StoredTable(SCHEMA)
    stored.append(table.slice(0, cut))
    stored.append(table.slice(cut))
    assert content_hash(stored) == content_hash(table)
    later = pa.concat_tables([table.slice(cut), table.slice(0, cut)])
    assert content_hash(later.slice(table.num_rows - cut)) == content_hash(table.slice(0, cut))
    assert RangeHasher(table).hash(cut, table.num_rows) == content_hash(table.slice(cut))


@given(rows=rows)
def test_hashes_of_rows_are_equal_where_the_rows_are(rows: list[dict[str, Any]]) -> None:
    hashes = row_hashes(pa.Table.from_pylist(rows, schema=SCHEMA)).tolist()
    for row, own in zip(rows, hashes, strict=True):
        assert [own == other for other in hashes] == [row == other for other in rows]
