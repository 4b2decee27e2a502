"""AudioSet's segment CSVs, in the published format and its common variants, as tables.

In: CSVs of `ID, START, END, "MID,MID"`, with or without comments, a header, blanks, quotes and
decimals, and `class_labels_indices.csv`. Out: a table of `SEGMENTS_SCHEMA`, one row per segment, in
the order of the files. Millions of segments are read by columns, without a Python object for each,
and only some at a time.
"""

import codecs
import re
from collections.abc import Iterator, Sequence

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
_BLOCK_BYTES = 2**23
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


def iter_segments(
    given: Sequence[str], mids: Sequence[str], block_bytes: int = _BLOCK_BYTES
) -> Iterator[pa.Table]:
    """All segments of several CSVs, each `SPLIT=PATH` or an official file, in tables of some.

    Args:
        given: the CSVs.
        mids: the vocabulary.
        block_bytes: about how much of a CSV is read at once.

    Raises:
        UserError: a CSV is missing, a line is not a segment, or a label is not in `mids`; after all
            tables before.
    """
    for split, path in map(split_and_segments, given):
        yield from _CsvReader(path, split, mids).tables(block_bytes)


def segment_keys(segments: pa.Table) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """`[N]` a number for each segment's id and start, `number * SPAN_MS + start`, and the ids by
    number."""
    ids = segments["id"].combine_chunks().dictionary_encode()
    start_ms = np.rint(segments["start_s"].to_numpy() * 1000).astype(np.int64)
    return ids.indices.to_numpy().astype(np.int64) * SPAN_MS + start_ms, ids.dictionary


class _CsvReader:
    """Reads a CSV, and counts what is wrong in it."""

    def __init__(self, path: str, split: str, mids: Sequence[str]) -> None:
        self._path, self._split, self._mids = path, split, mids
        self._num_lines = 0
        self._has_header = False
        self._bad_lines = _Fault()
        self._late, self._backwards = _Fault(), _Fault()
        self._unknown_label: UserError | None = None

    def tables(self, block_bytes: int) -> Iterator[pa.Table]:
        """The segments, up to the first fault, which is raised once all are counted."""
        num_segments = 0
        for lines in _iter_lines(self._path, block_bytes):
            table = self._parse(lines)
            self._num_lines += len(lines)
            num_segments += table.num_rows
            if not self._is_faulty:
                yield table
        self._refuse(num_segments)

    @property
    def _is_faulty(self) -> bool:
        faults = (self._bad_lines, self._late, self._backwards)
        return any(fault.num for fault in faults) or self._unknown_label is not None

    def _parse(self, lines: pa.Array) -> pa.Table:
        bare = pc.replace_substring(pc.replace_substring(lines, " ", ""), '"', "")
        fields = pc.extract_regex(bare, _LINE)
        ids = pc.struct_field(fields, "id")
        ids = pc.if_else(
            pc.match_substring_regex(ids, "^Y.{11}$"), pc.utf8_slice_codeunits(ids, 1), ids
        )
        good = pc.fill_null(pc.match_substring_regex(ids, f"^{YOUTUBE_ID}$"), False)
        self._count_bad(lines, bare, good)
        ids, fields = ids.filter(good), fields.filter(good)
        start_s, end_s = (fields.field(name).cast(pa.float64()) for name in ("start_s", "end_s"))
        self._late.add(pc.greater_equal(start_s, SPAN_MS / 1000), ids)
        self._backwards.add(pc.less_equal(end_s, start_s), ids)
        try:
            classes = _classes(fields.field("mids"), ids, self._mids, self._path)
        except UserError as error:
            self._unknown_label = self._unknown_label or error
            return SEGMENTS_SCHEMA.empty_table()
        columns = [ids, start_s, end_s, pa.repeat(self._split, len(ids)), classes]
        return pa.table(columns, schema=SEGMENTS_SCHEMA)

    def _count_bad(self, lines: pa.Array, bare: pa.Array, good: pa.Array) -> None:
        """Count lines that are no segment; the first one without a digit is a header."""
        if pc.all(good).as_py():
            return
        bad = np.flatnonzero(pc.invert(pc.or_(good, pc.match_substring_regex(bare, "^(#|$)"))))
        is_first = len(bad) and not self._bad_lines.num and not self._has_header
        if is_first and not re.search("[0-9]", lines[int(bad[0])].as_py()):
            self._has_header = True
            bad = bad[1:]
        if len(bad):
            number = int(bad[0])
            self._bad_lines.count(
                len(bad), f"{self._num_lines + number + 1}\n{lines[number].as_py()[:80]}"
            )

    def _refuse(self, num_segments: int) -> None:
        if self._bad_lines.num:
            number, text = self._bad_lines.first.split("\n", 1)
            raise UserError(
                f"{self._path}, line {number}",
                f'not YTID, START, END, "LABELS": {text!r} ({self._bad_lines.num} such lines)',
            )
        if self._unknown_label is None and not num_segments:
            raise UserError(self._path, "has no segment")
        for fault, why in (
            (self._late, "starts too late"),
            (self._backwards, "ends before it starts"),
        ):
            if fault.num:
                raise UserError(
                    self._path, f"segment {fault.first} {why} ({fault.num} such segments)"
                )
        if self._unknown_label is not None:
            raise self._unknown_label


class _Fault:
    """How often something is wrong, and where first."""

    def __init__(self) -> None:
        self.num = 0
        self.first = ""

    def count(self, num: int, first: str) -> None:
        self.first = self.first or first
        self.num += num

    def add(self, wrong: pa.Array, ids: pa.Array) -> None:
        indices = np.flatnonzero(wrong)
        if len(indices):
            self.count(len(indices), ids[int(indices[0])].as_py())


def _iter_lines(path: str, block_bytes: int) -> Iterator[pa.Array]:
    """The lines of a text file with any line ends, without a byte order mark, some at a time."""
    try:
        file = storage.open_binary(path)
    except FileNotFoundError as error:
        raise UserError(path, "no such file") from error
    with file:
        if not file.read(len(codecs.BOM_UTF8) + 1).removeprefix(codecs.BOM_UTF8):
            raise UserError(path, "has no segment")  # Arrow rejects an empty CSV
        file.seek(0)
        try:
            with pyarrow.csv.open_csv(
                file,
                pyarrow.csv.ReadOptions(
                    column_names=["line"], block_size=block_bytes, use_threads=False
                ),
                # A delimiter that no text contains: each line is one cell.
                pyarrow.csv.ParseOptions(
                    delimiter="\x01", quote_char=False, ignore_empty_lines=False
                ),
                pyarrow.csv.ConvertOptions(column_types={"line": pa.string()}),
            ) as reader:
                for batch in reader:
                    yield batch.column(0)
        except pa.ArrowInvalid as error:
            raise UserError(path, f"not a CSV in UTF-8 ({error})") from error


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
