"""Whether files named by an id of YouTube's alone are whole videos, or clips already cut.

In: such files, one partition after another. Steps: keep a few, by a hash of their names; read their
headers. Out: what most of these are, and a note on how that was decided.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
import pyarrow as pa
import soundfile

from pipeline import storage
from pipeline.storage.table_hashes import text_hashes
from pipeline.terminal.units import counted

WHOLE_S = 12.0
"""A longer file is a whole video, not an already cut segment of 10 s."""
SAMPLE_SIZE = 32
"""Files whose headers are read to distinguish whole videos from clips."""


class LengthSample:
    """A few of the files in question, the same in whatever order they are added."""

    def __init__(self) -> None:
        self._num_files = 0
        self._sample: list[tuple[int, str, dict[str, Any]]] = []

    def add(self, files: pa.Table) -> None:
        """Add files."""
        self._num_files += files.num_rows
        hashes = text_hashes(files["name"])
        first = np.argsort(hashes, kind="stable")[:SAMPLE_SIZE]
        rows = files.take(pa.array(first)).to_pylist()
        self._sample += [
            (int(number), row["uri"], row) for number, row in zip(hashes[first], rows, strict=True)
        ]
        self._sample = sorted(self._sample, key=lambda entry: entry[:2])[:SAMPLE_SIZE]

    def are_whole(self) -> tuple[bool, list[str]]:
        """Whether they are whole videos, and a note on that."""
        if not self._num_files:
            return False, []
        with ThreadPoolExecutor(max_workers=8) as pool:
            lengths = list(pool.map(_duration_s, (row for *_, row in self._sample)))
        durations_s = [duration_s for duration_s in lengths if duration_s is not None]
        num_long = sum(duration_s > WHOLE_S for duration_s in durations_s)
        whole = num_long > len(durations_s) / 2
        meaning, other = ("whole videos", "yes") if whole else ("already cut clips", "no")
        named = counted(
            self._num_files, "file named by an id alone is", "files named by an id alone are"
        )
        return whole, [
            f"{named} treated as {meaning}: {num_long} of {len(durations_s)} whose length could be "
            f"read last over {WHOLE_S:g} s; --cut {other} overrides this"
        ]


def _duration_s(row: dict[str, Any]) -> float | None:
    """Length by the header, in seconds; None if unknown."""
    if row["row"] is not None:
        return None  # reading a row costs its row group, and nobody keeps whole videos in Parquet
    try:
        with storage.open_binary(row["uri"]) as file:
            if row["offset_bytes"] is not None:
                file.seek(row["offset_bytes"])
                file = io.BytesIO(file.read(row["size_bytes"]))
            return _header_duration_s(file)
    except (OSError, av.FFmpegError):
        return None


def _header_duration_s(file: io.IOBase) -> float | None:
    try:
        duration_s: float = soundfile.info(file).duration
        return duration_s
    except soundfile.LibsndfileError:
        file.seek(0)
    with av.open(file, "r") as container:
        return None if container.duration is None else container.duration / av.time_base
