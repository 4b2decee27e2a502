"""Tags in other formats than Parquet: CSV, JSON Lines, label tracks of Audacity, tables of Raven.

In: the finished Parquet files, batch by batch. Out: files beside them, or bytes for standard
output. A file that is there is left alone: it is whole, of the same tags, and may have been edited.
The same tags give the same bytes.
"""

import csv
import io
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.terminal.progress import ProgressBar
from trainer.tagging.assemble import RECORDINGS, WINDOWS, TagCard, read_batches
from trainer.tagging.events import Event, events_of
from trainer.tagging.file_names import FileNames
from trainer.tagging.settings import Format

_WRITES = 8
"""Files that are written at once: each takes a request in a bucket."""
_SUFFIXES: Mapping[Format, str] = {"audacity": ".txt", "raven": ".selections.txt"}
"""Of the formats with a file a recording."""
_RAVEN_COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"),
    *("Low Freq (Hz)", "High Freq (Hz)", "Label", "Score"),
)


def write_formats(output: str, formats: Iterable[Format], card: TagCard) -> None:
    """Write complete tags in other formats, too.

    Args:
        output: folder of the tags.
        formats: which; files that are there are left alone.
        card: of the tags.

    Raises:
        UserError: a file cannot be read or written.
    """
    chosen = list(dict.fromkeys(formats))
    whole: dict[str, tuple[str, Callable[[Iterable[pa.RecordBatch]], Iterator[bytes]]]] = {}
    if "csv" in chosen:
        whole |= {
            "windows.csv": (WINDOWS, csv_of_windows),
            "recordings.csv": (RECORDINGS, csv_of_recordings),
        }
    if "jsonl" in chosen:
        whole["windows.jsonl"] = (WINDOWS, json_lines)
    for name, (table, encode) in whole.items():
        path = storage.join(output, name)
        if not storage.exists(path):
            with storage.new_file(path) as file:
                for piece in encode(read_batches(storage.join(output, table))):
                    file.write(piece)
                file.commit()
    own_files = [one for one in chosen if one in _SUFFIXES]
    if own_files and card.num_recordings:
        _write_own_files(output, own_files, card)


def print_tags(
    chosen: Format, windows: pa.Table, recordings: pa.Table, sample_rate_hz: int
) -> None:
    """Print the tags of one recording in a format; in CSV those of its windows.

    Bytes, as the terminal's encoding may lack letters of a label.
    """
    try:
        for piece in format_tags(chosen, windows, recordings, sample_rate_hz):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # Who reads them has enough, such as `head`; Python would fail again at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def format_tags(
    chosen: Format, windows: pa.Table, recordings: pa.Table, sample_rate_hz: int
) -> Iterator[bytes]:
    """What `print_tags` prints."""
    if chosen == "csv":
        yield from csv_of_windows(windows.to_batches())
    elif chosen == "jsonl":
        yield from json_lines(windows.to_batches())
    else:
        highest_hz = min(sample_rate_hz, *recordings["file_rate_hz"].to_pylist()) / 2
        for _, events in events_of(windows.to_batches()):
            yield _own_file(chosen, events, highest_hz)


def csv_of_windows(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """A line a tag, from the rows of windows."""
    yield _csv([("recording", "start_s", "end_s", "label", "score")])
    names = ("recording", "start_s", "end_s", "labels", "scores")
    for batch in batches:
        rows = zip(*(_plain(batch[name]) for name in names), strict=True)
        yield _csv(
            (recording, start_s, end_s, label, score)
            for recording, start_s, end_s, labels, scores in rows
            for label, score in zip(labels, scores, strict=True)
        )


def csv_of_recordings(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """A line a recording, with its highest class by the maximum and by the mean."""
    facts = ("recording", "uri", "duration_s", "file_rate_hz", "num_windows", "fault")
    yield _csv([(*facts, "max_label", "max_score", "mean_label", "mean_score")])
    for batch in batches:
        columns = [batch[name].to_pylist() for name in facts]
        for name in ("max_labels", "max_scores", "mean_labels", "mean_scores"):
            columns.append([values[0] if values else None for values in _plain(batch[name])])
        yield _csv(zip(*columns, strict=True))


def json_lines(batches: Iterable[pa.RecordBatch]) -> Iterator[bytes]:
    """A line a row, with all its columns."""
    for batch in batches:
        names = batch.schema.names
        rows = zip(*(_plain(batch[name]) for name in names), strict=True)
        lines = (json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows)
        yield "".join(f"{line}\n" for line in lines).encode()


def audacity_labels(events: Iterable[Event]) -> bytes:
    """A label track: start, end and class of each event, without scores: Audacity finds, counts
    and exports by the text of a label, which therefore is the class alone."""
    return "".join(
        f"{event.start_s:.6f}\t{event.end_s:.6f}\t{_one_field(event.label)}\n" for event in events
    ).encode()


def raven_table(events: Iterable[Event], highest_hz: float) -> bytes:
    """A selection table, of boxes as high as the frequencies that the model heard."""
    lines = ["\t".join(_RAVEN_COLUMNS)]
    for number, event in enumerate(events, start=1):
        box = f"{event.start_s:.6f}\t{event.end_s:.6f}\t0\t{highest_hz:g}"
        label = _one_field(event.label)
        lines.append(f"{number}\tSpectrogram 1\t1\t{box}\t{label}\t{event.score:.4f}")
    return "".join(f"{line}\n" for line in lines).encode()


def _write_own_files(output: str, formats: Sequence[Format], card: TagCard) -> None:
    """A file a recording in each of the formats."""
    rate_hz = card.plan.sample_rate_hz
    low_rates = _low_rates(output, rate_hz)
    names = {one: FileNames(_SUFFIXES[one]) for one in formats}
    there = {path for one in formats for path in storage.list_files(storage.join(output, one))}

    def writes() -> Iterator[list[tuple[str, bytes]]]:
        for recording, events in events_of(read_batches(storage.join(output, WINDOWS))):
            highest_hz = low_rates.get(recording, rate_hz) / 2
            paths = {one: storage.join(output, one, names[one].add(recording)) for one in formats}
            yield [
                (path, _own_file(one, events, highest_hz))
                for one, path in paths.items()
                if path not in there
            ]

    num_done = 0
    with (
        ThreadPoolExecutor(_WRITES) as pool,
        ProgressBar(f"recordings as {', '.join(formats)}", card.num_recordings) as bar,
    ):
        each = writes()
        while several := list(itertools.islice(each, 4 * _WRITES)):
            files = itertools.chain.from_iterable(several)
            for _ in pool.map(lambda file: storage.write_bytes(*file), files):
                pass
            num_done += len(several)
            bar.update(num_done)


def _own_file(chosen: Format, events: Iterable[Event], highest_hz: float) -> bytes:
    return audacity_labels(events) if chosen == "audacity" else raven_table(events, highest_hz)


def _low_rates(output: str, sample_rate_hz: int) -> dict[str, int]:
    """The sample rates of files that have a lower one than the model, by recording."""
    rates: dict[str, int] = {}
    for batch in read_batches(storage.join(output, RECORDINGS), ("recording", "file_rate_hz")):
        low = batch.filter(pc.less(batch["file_rate_hz"], sample_rate_hz))
        rates |= zip(low["recording"].to_pylist(), low["file_rate_hz"].to_pylist(), strict=True)
    return rates


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _one_field(label: str) -> str:
    """A label without what would begin another field or line."""
    return " ".join(label.split()) or "?"


def _plain(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    """The values; those of lists of floats with no more digits than tell them apart."""
    kind = column.type
    if not pa.types.is_list(kind) or not pa.types.is_floating(kind.value_type):
        values: list[Any] = column.to_pylist()
        return values
    numbers = iter(_shortest(pc.list_flatten(column).to_numpy(zero_copy_only=False)))
    lengths = pc.list_value_length(column).to_pylist()
    return [list(itertools.islice(numbers, length)) for length in lengths]


def _shortest(values: np.ndarray[Any, np.dtype[np.floating[Any]]]) -> list[float | None]:
    """Numbers as JSON and CSV write them best; None for what is none."""
    unique, places = np.unique(values, return_inverse=True)
    plain = [float(str(value)) if math.isfinite(value) else None for value in unique]
    return [plain[place] for place in places.tolist()]
