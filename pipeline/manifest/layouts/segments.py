"""AudioSet's segment CSVs, in the published format and its common variants, as one table.

In: CSVs of `ID, START, END, "MID,MID"`, with or without comments, a header, blanks, quotes and
decimals, and `class_labels_indices.csv`. Out: a table of `SEGMENTS_SCHEMA`, one row per segment, in
the order of the files. Millions of segments are read by columns, without a Python object for each.
"""

import codecs
import io
import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline import storage
from pipeline.errors import UserError
from pipeline.manifest.layouts.csv_table import read_rows
from pipeline.manifest.layouts.options import split_and_path
from pipeline.manifest.splits import check_split

CLASS_LABELS = "class_labels_indices.csv"
"""Name of the label CSV, looked for beside the first segment CSV."""

YOUTUBE_ID = "[A-Za-z0-9_-]{11}"
SPAN_MS = 10**9
"""Later than any segment starts; combines an id's number and a start into one number."""

SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),  # YouTube's
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("split", pa.string()),
        pa.field("classes", pa.list_(pa.int32())),  # indices into the vocabulary
    ]
)

_SPLITS = {
    "unbalanced_train_segments": "unbalanced",
    "balanced_train_segments": "balanced",
    "eval_segments": "eval",
}
_NUMBER = r"[0-9]+(?:\.[0-9]*)?"
# Decides by each character: patterns that look ahead take three times as long.
_LINE = (
    rf"^(?P<id>[^,.]+)(?:\.[a-z0-9]+)?,(?P<start_s>{_NUMBER}),(?P<end_s>{_NUMBER}),(?P<mids>.+)$"
)


def read_vocabulary(path: str) -> dict[str, str]:
    """Machine id -> display name, in the order of the classes.

    Raises:
        UserError: no such file, a column is missing, an index is not a number, or two classes have
            the same index, machine id or name.
    """
    rows = [row for _, row in read_rows(path, required=("index", "mid", "display_name"))]
    try:
        rows.sort(key=lambda row: int(row["index"]))
    except ValueError as error:
        raise UserError(path, f"index must be whole numbers ({error})") from error
    for name in ("index", "mid", "display_name"):
        values = [row[name] for row in rows]
        if len(set(values)) != len(values):
            repeated = next(value for value in values if values.count(value) > 1)
            raise UserError(path, f"two classes have the {name} {repeated!r}")
    return {row["mid"]: row["display_name"] for row in rows}


def split_and_segments(given: str) -> tuple[str, str]:
    """The two parts of `SPLIT=PATH`; the name of an official file implies the split.

    Raises:
        UserError: the split is missing or is not a valid name.
    """
    split, path = split_and_path(given)
    if split is not None:
        check_split(split, f"--segments {given}")
        return split, storage.absolute(path)
    name = given.rpartition("/")[2]
    for official, implied in _SPLITS.items():
        if name.startswith(official):
            return implied, storage.absolute(given)
    raise UserError(
        f"--segments {given}", f"the split is missing; write SPLIT=PATH, such as train={given}"
    )


def read_segments(given: Sequence[str], mids: Sequence[str]) -> tuple[pa.Table, list[str]]:
    """All segments of several CSVs, each `SPLIT=PATH` or an official file, and notes on them.

    If a segment is listed several times, the first counts.

    Raises:
        UserError: a CSV is missing, a line is not a segment, or a label is not in `mids`.
    """
    tables = [_read_csv(path, split, mids) for split, path in map(split_and_segments, given)]
    table = pa.concat_tables(tables).combine_chunks()
    _, first = np.unique(segment_keys(table)[0], return_index=True)
    num_duplicates = table.num_rows - len(first)
    if not num_duplicates:
        return table, []
    note = f"{num_duplicates:,} segments are duplicates (same id and start); the first counts"
    return table.take(pa.array(np.sort(first))), [note]


def segment_keys(segments: pa.Table) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """`[N]` a number for each segment's id and start, `number * SPAN_MS + start`, and the ids by
    number."""
    ids = segments["id"].combine_chunks().dictionary_encode()
    start_ms = np.rint(segments["start_s"].to_numpy() * 1000).astype(np.int64)
    return ids.indices.to_numpy().astype(np.int64) * SPAN_MS + start_ms, ids.dictionary


def _read_csv(path: str, split: str, mids: Sequence[str]) -> pa.Table:
    lines = _read_lines(path)
    bare = pc.replace_substring(pc.replace_substring(lines, " ", ""), '"', "")
    fields = pc.extract_regex(bare, _LINE)
    ids = pc.struct_field(fields, "id")
    ids = pc.if_else(
        pc.match_substring_regex(ids, "^Y.{11}$"), pc.utf8_slice_codeunits(ids, 1), ids
    )
    good = pc.fill_null(pc.match_substring_regex(ids, f"^{YOUTUBE_ID}$"), False)
    bad_lines = np.flatnonzero(pc.invert(pc.or_(good, pc.match_substring_regex(bare, "^(#|$)"))))
    if len(bad_lines) and not re.search("[0-9]", lines[int(bad_lines[0])].as_py()):
        bad_lines = bad_lines[1:]  # a header
    if len(bad_lines):
        text = lines[int(bad_lines[0])].as_py()[:80]
        raise UserError(
            f"{path}, line {bad_lines[0] + 1}",
            f'not YTID, START, END, "LABELS": {text!r} ({len(bad_lines)} such lines)',
        )
    ids = ids.filter(good).combine_chunks()
    fields = fields.filter(good).combine_chunks()
    if not len(ids):
        raise UserError(path, "has no segment")
    start_s, end_s = (fields.field(name).cast(pa.float64()) for name in ("start_s", "end_s"))
    _refuse(pc.greater_equal(start_s, SPAN_MS / 1000), ids, path, "starts too late")
    _refuse(pc.less_equal(end_s, start_s), ids, path, "ends before it starts")
    classes = _classes(fields.field("mids"), ids, mids, path)
    columns = [ids, start_s, end_s, pa.repeat(split, len(ids)), classes]
    return pa.table(columns, schema=SEGMENTS_SCHEMA)


def _read_lines(path: str) -> pa.ChunkedArray:
    """The lines of a text file with any line ends, without a byte order mark."""
    try:
        data = storage.read_bytes(path)
    except FileNotFoundError as error:
        raise UserError(path, "no such file") from error
    if not data.removeprefix(codecs.BOM_UTF8):
        raise UserError(path, "has no segment")  # Arrow rejects an empty CSV
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(data),
            pyarrow.csv.ReadOptions(column_names=["line"]),
            # A delimiter that no text contains: each line is one cell.
            pyarrow.csv.ParseOptions(delimiter="\x01", quote_char=False, ignore_empty_lines=False),
            pyarrow.csv.ConvertOptions(column_types={"line": pa.string()}),
        )
    except pa.ArrowInvalid as error:
        raise UserError(path, f"not a CSV in UTF-8 ({error})") from error
    return table["line"]


def _classes(texts: pa.Array, ids: pa.Array, mids: Sequence[str], path: str) -> pa.ListArray:
    """Indices into the vocabulary of comma-separated machine ids."""
    lists = pc.split_pattern(texts, ",")
    names = pc.utf8_trim_whitespace(lists.flatten())
    indices = pc.index_in(names, pa.array(mids))
    if indices.null_count:
        row = int(np.flatnonzero(indices.is_null())[0])
        clip = ids[int(np.searchsorted(lists.offsets.to_numpy(), row, side="right")) - 1]
        raise UserError(
            path,
            f"the label {names[row].as_py()!r} of {clip} is not among the {len(mids)} of the "
            "label CSV",
            "give the matching label CSV with --class-labels",
        )
    return pa.ListArray.from_arrays(lists.offsets, indices)


def _refuse(wrong: pa.Array, ids: pa.Array, path: str, why: str) -> None:
    indices = np.flatnonzero(wrong)
    if len(indices):
        raise UserError(
            path, f"segment {ids[int(indices[0])]} {why} ({len(indices)} such segments)"
        )
